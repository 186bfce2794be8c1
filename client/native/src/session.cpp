#include "session.h"

#include <algorithm>
#include <set>

#include "masks.h"

namespace fedslm {
namespace {

constexpr char kAdvertise[] = "advertise", kShare[] = "share", kConfirm[] = "confirm";

Bytes number(std::int64_t value) { return write_integer(static_cast<std::uint64_t>(value)); }

void require_view(std::string_view found, std::string_view expected) {
  if (found != expected) unsafe("the sender was told another story, or the message is from another session");
}

void require_subset(const Clients& clients, const Clients& of) {
  if (!std::includes(of.begin(), of.end(), clients.begin(), clients.end()))
    unsafe("a client was not in the phase before");
}

bool among(const Clients& clients, std::int64_t client) {
  return std::binary_search(clients.begin(), clients.end(), client);
}

}  // namespace

Session::Session(const SecureTerms& terms, std::int64_t client, std::shared_ptr<const Identity> identity,
                 std::shared_ptr<const Roster> roster, SessionSecrets secrets, Draw draw)
    : terms_(terms),
      client_(client),
      identity_(std::move(identity)),
      roster_(std::move(roster)),
      secrets_(std::make_unique<SessionSecrets>(std::move(secrets))),
      draw_(std::move(draw)) {
  require(terms_.session.size() == kKeyBytes, "a session is not named by 32 bytes");
  if (roster_->public_key(client_) != identity_->public_key())
    unsafe("the roster has another identity key for this client");
}

template <typename Work>
auto Session::step(Phase expected, Phase next, Work work) {
  const bool due = phase_ == expected;
  phase_ = Phase::closed;
  try {
    if (!due) unsafe("each phase is answered once, in order");
    auto answer = work();
    phase_ = next;
    return answer;
  } catch (...) {
    close();
    throw;
  }
}

void Session::close() {
  secrets_.reset();
  held_.clear();
}

Advertisement Session::own() const {
  const Bytes context = raw_sha256(terms_.bytes());
  Advertisement found;
  found.client = client_;
  found.share_key = x25519_public(secrets_->share_key);
  found.mask_key = x25519_public(secrets_->mask_key);
  const std::string_view seed(reinterpret_cast<const char*>(secrets_->seed.data()), kKeyBytes);
  found.commitment = digest("seed", {context, number(client_), seed});
  found.signature = identity_->sign(kAdvertise, context, client_, found.content());
  return found;
}

Bytes Session::advertise() {
  return step(Phase::begun, Phase::advertised, [this] {
    const Advertisement mine = own();
    return write_message(Kind::advertisement, raw_sha256(terms_.bytes()),
                         number(client_) + mine.content() + mine.signature);
  });
}

void Session::announce(const KeyList& list) {
  const Bytes context = raw_sha256(terms_.bytes());
  if (list.context != context) unsafe("the announcement is for other terms: another run, round, session or plan");
  if (static_cast<std::int64_t>(list.entries.size()) < terms_.min_cohort)
    throw Refusal("quorum", "fewer clients are announced than the plan asks for");
  std::set<Bytes> keys;
  Clients clients;
  Bytes body = write_integer(list.entries.size());
  for (const Advertisement& entry : list.entries) {
    for (const Bytes* key : {&entry.share_key, &entry.mask_key, &entry.commitment})
      if (!keys.insert(*key).second) unsafe("a key is announced twice");
    entries_[entry.client] = entry;
    clients.push_back(entry.client);
    body += number(entry.client) + entry.content() + entry.signature;
  }
  const auto mine = entries_.find(client_);
  if (mine == entries_.end() || !(mine->second == own())) unsafe("this client's own entry is missing or changed");
  view_ = digest("announcement", {write_message(Kind::key_list, context, body)});
  bounds_ = bounds_of(static_cast<std::int64_t>(clients.size()), terms_.honest_fraction, terms_.survivor_fraction);
  graph_ = std::make_unique<Graph>(clients, bounds_.degree, digest("ring", {view_}));
  for (const Advertisement& entry : list.entries)
    roster_->verify(kAdvertise, context, entry.client, entry.signature, entry.content());
}

SecretBytes Session::agreed(const SecretBytes& mine, std::int64_t peer, bool masking) const {
  const Advertisement& theirs = entries_.at(peer);
  return agree(mine, masking ? theirs.mask_key : theirs.share_key);
}

Bytes Session::share(std::string_view message) {
  return step(Phase::advertised, Phase::shared, [&] {
    announce(KeyList::read(message));
    const auto seeds = split(secrets_->seed, bounds_.threshold, bounds_.degree, draw_);
    const auto keys = split(secrets_->mask_key, bounds_.threshold, bounds_.degree, draw_);
    Rows ciphertexts;
    for (std::int64_t peer : graph_->neighbours(client_)) {
      const auto at = static_cast<std::size_t>(graph_->point(client_, peer) - 1);
      SecretBytes pair = seeds.at(at);
      pair.insert(pair.end(), keys.at(at).begin(), keys.at(at).end());
      ciphertexts.emplace_back(peer, encrypt(agreed(secrets_->share_key, peer, false), view_, client_, peer, pair));
    }
    return write_message(Kind::shares, view_,
                         number(client_) + write_rows(ciphertexts) + identity_->sign(kShare, view_, client_));
  });
}

Clients Session::sharing_neighbours() const {
  Clients found;
  for (std::int64_t peer : graph_->neighbours(client_))
    if (among(sharers_, peer)) found.push_back(peer);
  return found;
}

std::int64_t Session::accept(std::string_view bytes) {
  return step(Phase::shared, Phase::accepted, [&] {
    const SharesForYou message = SharesForYou::read(bytes);
    require_view(message.context, view_);
    sharers_ = clients_of(message.sharers);
    if (message.receiver != client_ || !among(sharers_, client_)) unsafe("the shares are not for this client");
    Clients announced;
    for (const auto& entry : entries_) announced.push_back(entry.first);
    require_subset(sharers_, announced);
    graph_->require_kept(bounds_, sharers_);
    for (const auto& [client, signature] : message.sharers) roster_->verify(kShare, view_, client, signature);
    if (clients_of(message.ciphertexts) != sharing_neighbours())
      unsafe("shares of a neighbour are missing, or there are some that are not a neighbour's");
    for (const auto& [peer, sealed] : message.ciphertexts) {
      SecretBytes pair = decrypt(agreed(secrets_->share_key, peer, false), view_, peer, client_, sealed);
      require_element(pair.data());
      require_element(pair.data() + kShareBytes);
      held_[peer] = std::move(pair);
    }
    view_ = digest("sharers", {view_, write_clients(sharers_)});
    return bounds_.clients;
  });
}

Bytes Session::mask(const Words& vector) {
  return step(Phase::accepted, Phase::masked, [&] {
    require(static_cast<std::int64_t>(vector.size()) == terms_.dimension, "a vector to be masked has another size");
    Words total = vector;
    add_mask(total, self_mask_key(secrets_->seed, view_, client_), false);
    for (std::int64_t peer : sharing_neighbours()) {
      const SecretBytes secret = agreed(secrets_->mask_key, peer, true);
      add_mask(total, pair_mask_key(secret, view_, client_, peer), client_ > peer);
    }
    secrets_.reset();
    Bytes body = number(client_) + write_integer(4 * total.size());
    body.reserve(body.size() + 4 * total.size());
    for (std::uint32_t word : total)
      for (int byte = 0; byte < 4; ++byte) body += static_cast<char>((word >> (8 * byte)) & 255);
    return write_message(Kind::masked, view_, body);
  });
}

Bytes Session::confirm(std::string_view bytes) {
  return step(Phase::masked, Phase::confirmed, [&] {
    const SurvivorList message = SurvivorList::read(bytes);
    require_view(message.context, view_);
    require_subset(message.survivors, sharers_);
    if (!among(message.survivors, client_)) unsafe("this client is not among the survivors");
    graph_->require_kept(bounds_, message.survivors);
    survivors_ = message.survivors;
    view_ = digest("survivors", {view_, write_clients(survivors_)});
    return write_message(Kind::confirmation, view_, number(client_) + identity_->sign(kConfirm, view_, client_));
  });
}

Bytes Session::reveal(std::string_view bytes) {
  return step(Phase::confirmed, Phase::closed, [&] {
    const Confirmations message = Confirmations::read(bytes);
    require_view(message.context, view_);
    require_subset(clients_of(message.signatures), survivors_);
    if (static_cast<std::int64_t>(message.signatures.size()) < bounds_.quorum)
      throw Refusal("quorum", "too few confirmations of the survivors");
    for (const auto& [client, signature] : message.signatures) roster_->verify(kConfirm, view_, client, signature);
    // One list says who survived, so of nobody both secrets are opened.
    Rows seeds, keys;
    for (const auto& [peer, pair] : held_) {
      const char* shares = reinterpret_cast<const char*>(pair.data());
      if (among(survivors_, peer)) {
        seeds.emplace_back(peer, Bytes(shares, kShareBytes));
      } else {
        keys.emplace_back(peer, Bytes(shares + kShareBytes, kShareBytes));
      }
    }
    held_.clear();
    return write_message(Kind::reveals, view_, number(client_) + write_rows(seeds) + write_rows(keys));
  });
}

}  // namespace fedslm
