// What this device spent: an append-only file, each line chained to the one before, on the disk
// before a record is touched. A crash counts too much, never too little.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config.h"
#include "objects.h"

namespace fedslm {

// The end of the server's ledger, signed by the key that the owner pinned.
struct Head {
  std::int64_t seq = 0;
  std::string hash;
};

// Reads and verifies it; an empty one where the owner pinned no key.
Head head_of(const Config& config, const Header& header);

class Ledger {
 public:
  // Locks the folder's ledger; refuses one that was changed, that another process holds, or that is
  // shorter than the note of its end, which lies beside the folder (`FOLDER.end`).
  explicit Ledger(const std::string& folder);
  ~Ledger();
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;

  double epsilon(double delta) const;
  // Refuses a server whose ledger went back or split.
  void require_later(const Head& head) const;
  std::size_t answers() const { return answered_.size(); }
  // Charges one answer and waits until it is on the disk.
  // Refuses a round that was answered before, one that the owner's epsilon does not cover, another
  // plan than the run had, and a server whose ledger went back or split.
  void charge(const Config& config, const Terms& terms, const Head& head, const std::string& run,
              std::int64_t server_round);

 private:
  void read(const Bytes& text);
  void add(const std::string& line);
  void note_end() const;
  const std::string end_;
  int descriptor_ = -1;
  std::string last_;                   // hash of the last line
  std::vector<std::string> answered_;  // run and round of each answer
  std::map<std::string, std::string> plans_;  // of each run
  Head seen_;
  std::vector<double> renyi_;  // of all answers
};

}  // namespace fedslm
