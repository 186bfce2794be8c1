#include "secagg.h"

namespace fedslm {
namespace {

constexpr char kMagic[] = "FSSA";
constexpr char kVersion = 1;
constexpr std::size_t kDigest = 16, kContext = 32;

Bytes seal(Kind kind, std::string_view body) {
  Bytes out = kMagic;
  out += kVersion;
  out += static_cast<char>(kind);
  out += body;
  return out + raw_sha256(out).substr(0, kDigest);
}

// Reads a body from front to back; what is missing or left over is refused.
class Reader {
 public:
  Reader(Kind kind, std::string_view message) {
    const Bytes head = Bytes(kMagic) + kVersion + static_cast<char>(kind);
    require(message.size() >= head.size() + kDigest, "a message of secure aggregation is cut off");
    require(message.substr(0, head.size()) == head, "a message of secure aggregation is of another kind");
    const std::string_view all = message.substr(0, message.size() - kDigest);
    require(raw_sha256(all).substr(0, kDigest) == message.substr(all.size()),
            "a message of secure aggregation is damaged");
    left_ = all.substr(head.size());
  }
  Bytes take(std::size_t count) {
    require(count <= left_.size(), "a message of secure aggregation ends early");
    const Bytes out(left_.substr(0, count));
    left_.remove_prefix(count);
    return out;
  }
  std::int64_t integer() {
    std::int64_t value = 0;
    for (char byte : take(4)) value = value << 8 | static_cast<unsigned char>(byte);
    return value;
  }
  Clients clients() {
    const auto count = counted(4);
    Clients found;
    for (std::size_t i = 0; i < count; ++i) found.push_back(next(found.empty() ? -1 : found.back()));
    return found;
  }
  Rows rows(std::size_t width) {
    const auto count = counted(4 + width);
    Rows found;
    for (std::size_t i = 0; i < count; ++i) {
      const std::int64_t client = next(found.empty() ? -1 : found.back().first);
      found.emplace_back(client, take(width));
    }
    return found;
  }
  // A number of entries that there is room for.
  std::size_t counted(std::size_t each) {
    const auto count = static_cast<std::uint64_t>(integer());
    require(count <= left_.size() / each, "a message of secure aggregation ends early");
    return static_cast<std::size_t>(count);
  }
  std::int64_t next(std::int64_t before) {
    const std::int64_t client = integer();
    require(client > before, "clients are out of order, or one is there twice");
    return client;
  }
  void end() const { require(left_.empty(), "a message of secure aggregation has bytes too many"); }

 private:
  std::string_view left_;
};

Bytes text_of(std::string_view text) { return write_integer(text.size()) + Bytes(text); }

}  // namespace

Bytes SecureTerms::bytes() const {
  const auto number = [](std::int64_t value) { return write_integer(static_cast<std::uint64_t>(value)); };
  const auto fraction = [](const std::string& said) {
    return text_of(said.find('.') == std::string::npos ? said + ".0" : said);
  };
  return seal(Kind::terms, text_of(run_id) + number(server_round) + session + text_of(config_digest) +
                               text_of(plan_digest) + fraction(honest_fraction) + fraction(survivor_fraction) +
                               number(min_cohort) + number(dimension));
}

KeyList KeyList::read(std::string_view message) {
  Reader reader(Kind::key_list, message);
  KeyList found{reader.take(kContext), {}};
  const std::size_t count = reader.counted(4 + 3 * kKeyBytes + kSignatureBytes);
  for (std::size_t i = 0; i < count; ++i) {
    Advertisement entry;
    entry.client = reader.next(found.entries.empty() ? -1 : found.entries.back().client);
    entry.share_key = reader.take(kKeyBytes);
    entry.mask_key = reader.take(kKeyBytes);
    entry.commitment = reader.take(kKeyBytes);
    entry.signature = reader.take(kSignatureBytes);
    found.entries.push_back(std::move(entry));
  }
  reader.end();
  return found;
}

SharesForYou SharesForYou::read(std::string_view message) {
  Reader reader(Kind::shares_for_you, message);
  SharesForYou found;
  found.context = reader.take(kContext);
  found.receiver = reader.integer();
  found.sharers = reader.rows(kSignatureBytes);
  found.ciphertexts = reader.rows(kSealedBytes);
  reader.end();
  return found;
}

SurvivorList SurvivorList::read(std::string_view message) {
  Reader reader(Kind::survivors, message);
  SurvivorList found{reader.take(kContext), {}};
  found.survivors = reader.clients();
  reader.end();
  return found;
}

Confirmations Confirmations::read(std::string_view message) {
  Reader reader(Kind::confirmations, message);
  Confirmations found{reader.take(kContext), {}};
  found.signatures = reader.rows(kSignatureBytes);
  reader.end();
  return found;
}

Bytes write_message(Kind kind, std::string_view context, std::string_view body) {
  return seal(kind, Bytes(context) + Bytes(body));
}

Bytes write_clients(const Clients& clients) {
  Bytes out = write_integer(clients.size());
  for (std::int64_t client : clients) out += write_integer(static_cast<std::uint64_t>(client));
  return out;
}

Bytes write_rows(const Rows& rows) {
  Bytes out = write_integer(rows.size());
  for (const auto& [client, value] : rows) out += write_integer(static_cast<std::uint64_t>(client)) + value;
  return out;
}

Clients clients_of(const Rows& rows) {
  Clients found;
  for (const auto& row : rows) found.push_back(row.first);
  return found;
}

}  // namespace fedslm
