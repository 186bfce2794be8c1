#include "ledger.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "files.h"
#include "json.h"
#include "noise.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongest = std::size_t{64} << 20;

[[noreturn]] void broken(const std::string& why) { throw Refusal("ledger", "the device's ledger " + why); }
[[noreturn]] void tampered(const char* how = "was changed") {
  throw Refusal("ledger-tampered", std::string("the device's ledger ") + how);
}

std::string spelt(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

}  // namespace

Head head_of(const Config& config, const Header& header) {
  if (config.server_key.empty()) return {};
  if (header.count("ledger-seq") == 0) refuse("the instruction has no signed head of the server's ledger");
  const Head head{whole_of(header, "ledger-seq"), text_of(header, "ledger-hash")};
  if (text_of(header, "ledger-public_key") != config.server_key)
    refuse("the head of the server's ledger is signed by another key");
  if (head.seq < 0 || !is_digest(head.hash) ||
      !ed25519_holds(unhex(config.server_key), unhex(text_of(header, "ledger-signature")),
                     "fedslm-ledger-head-v1|" + std::to_string(head.seq) + "|" + head.hash))
    throw Refusal("ledger-tampered", "the head of the server's ledger has no valid signature");
  return head;
}

Ledger::Ledger(const std::string& folder) : end_(folder + ".end"), last_(64, '0'), renyi_(255, 0.0) {
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) broken("has no folder");
  const std::string path = folder + "/ledger.jsonl";
  descriptor_ = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (descriptor_ < 0) broken("cannot be opened");
  try {
    if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) broken("is in use by another process");
    sync_folder(folder);
    read(read_file(path, kLongest));
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

Ledger::~Ledger() { close(descriptor_); }

void Ledger::read(const Bytes& text) {
  // A crash between a charge and this note leaves a ledger that is longer, never one that is shorter.
  std::int64_t noted = 0;
  std::string hash = last_;
  if (exists(end_)) {
    try {
      const Json end = parse_json(read_private(end_, 1 << 10));
      noted = end.at("answers").whole();
      hash = end.at("hash").string();
    } catch (const Refusal&) {
      tampered("has a note of its end that cannot be read");
    }
  } else if (!text.empty()) {
    tampered("has lost the note of its end");
  }
  std::size_t at = 0;
  bool met = noted == 0 && hash == last_;
  for (std::size_t end; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
    add(text.substr(at, end - at));
    met = met || (static_cast<std::int64_t>(answered_.size()) == noted && last_ == hash);
  }
  if (!met) tampered("lost lines at its end, or an older copy was put back");
  // A line without its end was never finished, so nothing was released for it.
  if (at < text.size() && ftruncate(descriptor_, static_cast<off_t>(at)) != 0) broken("cannot be written");
  note_end();
}

void Ledger::note_end() const {
  replace_private(end_, "{\"answers\":" + std::to_string(answered_.size()) + ",\"hash\":" + quoted(last_) + "}\n");
}

void Ledger::add(const std::string& line) {
  try {
    const Json entry = parse_json(line);
    const Json* said = entry.find("grid");  // of Skellam noise alone
    const std::int64_t grid = said == nullptr ? 0 : said->whole();
    if (entry.members.size() != (said == nullptr ? 10 : 11) || (said != nullptr && grid < 1)) tampered();
    if (entry.at("before").string() != last_) tampered();
    const double q = entry.at("sampling_probability").real(), s = entry.at("noise_multiplier").real();
    const std::int64_t releases = entry.at("releases").whole();
    if (!(q > 0 && q <= 1 && s > 0 && releases >= 1)) tampered();
    const std::vector<double> one = renyi_of(q, s, grid);
    for (std::size_t i = 0; i < one.size(); ++i) renyi_[i] += static_cast<double>(releases) * one[i];
    answered_.push_back(canonical(entry.at("run")) + canonical(entry.at("round")));
    plans_[entry.at("run").string()] = entry.at("plan").string();
    seen_ = {entry.at("head").whole(), entry.at("head_hash").string()};
  } catch (const Refusal&) {
    tampered();
  }
  last_ = sha256(line);
}

double Ledger::epsilon(double delta) const { return answered_.empty() ? 0.0 : epsilon_of(renyi_, delta); }

void Ledger::require_later(const Head& head) const {
  if (head.seq < seen_.seq || (head.seq == seen_.seq && !seen_.hash.empty() && head.hash != seen_.hash))
    throw Refusal("ledger-tampered", "the server's ledger went back or has two histories");
}

void Ledger::charge(const Config& config, const Terms& terms, const Head& head, const std::string& run,
                    std::int64_t server_round) {
  const std::string name = quoted(run) + std::to_string(server_round);
  if (std::find(answered_.begin(), answered_.end(), name) != answered_.end())
    refuse("round " + std::to_string(server_round) + " was answered before");
  const auto planned = plans_.find(run);
  if (planned != plans_.end() && planned->second != terms.plan_digest) refuse("the run came with another plan before");
  require_later(head);
  std::vector<double> after = renyi_;
  const std::vector<double> one = renyi_of(terms.charged_probability(), terms.charged_noise(), terms.grid);
  for (std::size_t i = 0; i < one.size(); ++i) after[i] += static_cast<double>(terms.charged_releases()) * one[i];
  if (!(epsilon_of(after, config.delta) <= config.max_epsilon))
    throw Refusal("budget-exhausted", "the owner's epsilon is spent");
  const std::string grid = terms.grid > 0 ? ",\"grid\":" + std::to_string(terms.grid) : "";
  const std::string line =
      "{\"before\":" + quoted(last_) + grid + ",\"head\":" + std::to_string(head.seq) + ",\"head_hash\":" +
      quoted(head.hash) + ",\"mode\":" + quoted(terms.mode) +
      ",\"noise_multiplier\":" + spelt(terms.charged_noise()) + ",\"plan\":" + quoted(terms.plan_digest) +
      ",\"releases\":" + std::to_string(terms.charged_releases()) + ",\"round\":" + std::to_string(server_round) +
      ",\"run\":" + quoted(run) + ",\"sampling_probability\":" + spelt(terms.charged_probability()) + "}";
  const std::string whole = line + "\n";
  const ssize_t written = write(descriptor_, whole.data(), whole.size());
  if (written != static_cast<ssize_t>(whole.size()) || fsync(descriptor_) != 0) broken("cannot be written");
  add(line);
  note_end();
}

}  // namespace fedslm
