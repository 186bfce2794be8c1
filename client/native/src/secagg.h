// The messages of secure aggregation: docs/protocol.md, section 8. What was read is well formed.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "agreed.h"

namespace fedslm {

using Row = std::pair<std::int64_t, Bytes>;
using Rows = std::vector<Row>;
using Clients = std::vector<std::int64_t>;

constexpr std::size_t kSealedBytes = 2 * 33 + kTagBytes;

enum class Kind { terms = 1, advertisement, key_list, shares, shares_for_you, masked, survivors, confirmation,
                  confirmations, reveals };

// What all parties of one session agree on before a key is made; never what a server says.
struct SecureTerms {
  std::string run_id;
  std::int64_t server_round = 0;
  Bytes session;                                  // 32 bytes that the server drew
  std::string config_digest, plan_digest;         // hexadecimal
  std::string honest_fraction, survivor_fraction;  // as they are spelt in the plan
  std::int64_t min_cohort = 0, dimension = 0;

  Bytes bytes() const;
};

struct Advertisement {
  std::int64_t client = 0;
  Bytes share_key, mask_key, commitment, signature;
  Bytes content() const { return share_key + mask_key + commitment; }
  bool operator==(const Advertisement& other) const {
    return client == other.client && content() == other.content() && signature == other.signature;
  }
};

struct KeyList {
  Bytes context;
  std::vector<Advertisement> entries;  // ascending by client
  static KeyList read(std::string_view message);
};

struct SharesForYou {
  Bytes context;
  std::int64_t receiver = 0;
  Rows sharers, ciphertexts;
  static SharesForYou read(std::string_view message);
};

struct SurvivorList {
  Bytes context;
  Clients survivors;
  static SurvivorList read(std::string_view message);
};

struct Confirmations {
  Bytes context;
  Rows signatures;
  static Confirmations read(std::string_view message);
};

Bytes write_message(Kind kind, std::string_view context, std::string_view body);
Bytes write_clients(const Clients& clients);
Bytes write_rows(const Rows& rows);
Clients clients_of(const Rows& rows);

}  // namespace fedslm
