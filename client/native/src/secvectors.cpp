#include "secvectors.h"

#include "masks.h"
#include "session.h"
#include "skellam.h"

namespace fedslm {
namespace {

Bytes bytes_at(const Json& said, const char* name) { return unhex(said.at(name).string()); }
SecretBytes secret_at(const Json& said, const char* name) { return secret_of(bytes_at(said, name)); }
std::string hex_of(const SecretBytes& secret) {
  return hex(std::string_view(reinterpret_cast<const char*>(secret.data()), secret.size()));
}

Words words_of(const Bytes& bytes) {
  Words out(bytes.size() / 4);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    out[i / 4] |= static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[i])) << (8 * (i % 4));
  return out;
}

Clients numbers_of(const Json& said) {
  Clients out;
  for (const Json& one : said.list()) out.push_back(one.whole());
  return out;
}

// The code with which something is refused; empty if it is not.
template <typename Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Refusal& refused) {
    return refused.code;
  }
  return "";
}

void primitives(Check& check, const Json& said) {
  const SecretBytes own = secret_at(said, "private");
  const Bytes view = bytes_at(said, "view"), peer = bytes_at(said, "peer");
  check.same(hex(x25519_public(own)), said.at("public").string(), "public key");
  const SecretBytes secret = agree(own, peer);
  check.same(hex_of(secret), said.at("agreed").string(), "agreement");
  check.same(refusal([&] { agree(own, bytes_at(said, "small_order")); }), "secure-aggregation", "small order");
  check.same(hex_of(derive(secret, "share", view, "content", 44)), said.at("derived").string(), "derivation");
  check.same(hex(digest("seed", {view, "part"})), said.at("digest").string(), "digest");
  const std::int64_t sender = said.at("sender").whole(), receiver = said.at("receiver").whole();
  const SecretBytes plain = secret_at(said, "plain");
  const Bytes sealed = encrypt(secret, view, sender, receiver, plain);
  check.same(hex(sealed), said.at("sealed").string(), "encryption");
  check.holds(decrypt(secret, view, sender, receiver, sealed) == plain, "decryption");
  check.same(refusal([&] { decrypt(secret, view, receiver, sender, sealed); }), "secure-aggregation", "direction");
  const Identity identity(secret_at(said, "identity"));
  check.same(hex(identity.public_key()), said.at("identity_public").string(), "identity");
  const Bytes signature = identity.sign("share", view, sender, "content");
  check.same(hex(signature), said.at("signed").string(), "signature of an identity");
  const Roster roster(std::map<std::int64_t, Bytes>{{sender, identity.public_key()}});
  check.same(refusal([&] { roster.verify("share", view, sender, signature, "content"); }), "", "verification");
  for (const char* purpose : {"advertise", "confirm"})
    check.same(refusal([&] { roster.verify(purpose, view, sender, signature, "content"); }), "secure-aggregation",
               "another purpose");
  check.same(hex_of(self_mask_key(own, view, sender)), said.at("self_mask").string(), "self mask");
  const SecretBytes mask = pair_mask_key(secret, view, receiver, sender);
  check.same(hex_of(mask), said.at("pair_mask").string(), "pair mask");
  Words words(5, 0);
  add_mask(words, mask, true);
  check.holds(words == words_of(bytes_at(said, "subtracted")), "mask");
}

Draw given(const std::vector<Json>& said) {
  auto at = std::make_shared<std::size_t>(0);
  return [&said, at] { return secret_of(unhex(said.at((*at)++).string())); };
}

void sharing(Check& check, const Json& cases) {
  for (const Json& one : cases.list()) {
    const auto shares = split(secret_at(one, "secret"), one.at("threshold").whole(), one.at("count").whole(),
                              given(one.at("coefficients").list()));
    for (std::size_t i = 0; i < shares.size(); ++i)
      check.same(hex_of(shares[i]), one.at("shares").list().at(i).string(), "share");
  }
  check.same(refusal([] { require_element(secret_of(unhex("01" + std::string(60, '0') + "0129")).data()); }),
             "secure-aggregation", "the prime is no element");
}

void graphs(Check& check, const Json& said) {
  for (const Json& one : said.at("bounds").list()) {
    Bounds found;
    const std::string code = refusal([&] {
      found = bounds_of(one.at("clients").whole(), one.at("honest_fraction").string(),
                        one.at("survivor_fraction").string());
    });
    if (const Json* refused = one.find("refused")) {
      check.same(code, refused->string(), "a cohort that is not safe");
      continue;
    }
    const Clients numbers = {found.degree, found.threshold, found.required, found.corrupt, found.quorum};
    check.holds(code.empty() && numbers == numbers_of(one.at("bounds")), "bounds of a cohort");
  }
  const Json& ring = said.at("ring");
  const Clients clients = numbers_of(ring.at("clients"));
  const Bytes seed = bytes_at(ring, "seed");
  const Graph sparse(clients, ring.at("degree").whole(), seed);
  const Graph complete(clients, static_cast<std::int64_t>(clients.size()) - 1, seed);
  const std::int64_t of = ring.at("of").whole();
  check.holds(sparse.neighbours(of) == numbers_of(ring.at("neighbours")), "neighbours");
  Clients points, all;
  for (std::int64_t peer : sparse.neighbours(of)) points.push_back(sparse.point(of, peer));
  for (std::int64_t peer : complete.neighbours(of)) all.push_back(complete.point(of, peer));
  check.holds(points == numbers_of(ring.at("points")) && all == numbers_of(ring.at("complete_points")), "points");
}

SecureTerms terms_of(const Json& said) {
  SecureTerms terms;
  terms.run_id = said.at("run_id").string();
  terms.server_round = said.at("server_round").whole();
  terms.session = bytes_at(said, "session");
  terms.config_digest = said.at("config_digest").string();
  terms.plan_digest = said.at("plan_digest").string();
  terms.honest_fraction = said.at("honest_fraction").string();
  terms.survivor_fraction = said.at("survivor_fraction").string();
  terms.min_cohort = said.at("min_cohort").whole();
  terms.dimension = said.at("dimension").whole();
  return terms;
}

// The client of the vectors, with what it would have drawn.
class Replay {
 public:
  explicit Replay(const Json& said) : said_(said) {
    std::map<std::int64_t, Bytes> keys;
    for (const auto& [client, key] : said.at("roster").members) keys[std::stoll(client)] = unhex(key.string());
    roster_ = std::make_shared<const Roster>(std::move(keys));
    identity_ = std::make_shared<const Identity>(secret_at(said, "identity"));
    for (const Json& one : said.at("phases").list()) honest_.push_back(&one);
  }
  std::unique_ptr<Session> begin() const {
    SessionSecrets secrets{secret_at(said_, "share_key"), secret_at(said_, "mask_key"), secret_at(said_, "seed")};
    return std::make_unique<Session>(terms_of(said_.at("terms")), said_.at("client").whole(), identity_, roster_,
                                     std::move(secrets), given(said_.at("drawn").list()));
  }
  Bytes ask(Session& session, const std::string& phase, const Bytes& message) const {
    if (phase == "advertise") return session.advertise();
    if (phase == "share") return session.share(message);
    if (phase == "confirm") return session.confirm(message);
    if (phase == "reveal") return session.reveal(message);
    session.accept(message);
    return session.mask(words_of(bytes_at(said_, "vector")));
  }
  static Bytes message_of(const Json& phase) {
    const Json* found = phase.find("message");
    return found == nullptr ? Bytes() : unhex(found->string());
  }
  // A session that has answered all phases before one.
  std::unique_ptr<Session> before(const std::string& phase) const {
    auto session = begin();
    for (const Json* one : honest_) {
      if (one->at("phase").string() == phase) break;
      ask(*session, one->at("phase").string(), message_of(*one));
    }
    return session;
  }
  const std::vector<const Json*>& honest() const { return honest_; }

 private:
  const Json& said_;
  std::shared_ptr<const Roster> roster_;
  std::shared_ptr<const Identity> identity_;
  std::vector<const Json*> honest_;
};

void sessions(Check& check, const Json& said) {
  const SecureTerms terms = terms_of(said.at("terms"));
  check.same(hex(terms.bytes()), said.at("terms").at("bytes").string(), "terms");
  check.same(hex(raw_sha256(terms.bytes())), said.at("terms").at("digest").string(), "digest of terms");
  const Replay replay(said);
  auto session = replay.begin();
  for (const Json* one : replay.honest()) {
    const std::string& phase = one->at("phase").string();
    const Bytes message = Replay::message_of(*one);
    check.same(hex(replay.ask(*session, phase, message)), one->at("answer").string(), phase);
    // Asked once more, and asked in another order: the session closes, and has no secret left.
    auto other = replay.before(phase);
    replay.ask(*other, phase, message);
    check.same(refusal([&] { replay.ask(*other, phase, message); }), "secure-aggregation", "a repeated " + phase);
    for (const Json* next : replay.honest())
      check.same(refusal([&] { replay.ask(*other, next->at("phase").string(), Replay::message_of(*next)); }),
                 "secure-aggregation", "a closed session");
    if (phase == "reveal") continue;
    auto early = replay.before(phase);
    const Bytes last = Replay::message_of(*replay.honest().back());
    check.same(refusal([&] { early->reveal(last); }), "secure-aggregation", "an early reveal");
  }
  for (const Json& one : said.at("refused").list()) {
    const std::string &phase = one.at("phase").string(), &why = one.at("why").string();
    auto asked = replay.before(phase);
    check.same(refusal([&] { replay.ask(*asked, phase, bytes_at(one, "message")); }), one.at("code").string(), why);
    for (const Json* honest : replay.honest())
      if (honest->at("phase").string() == phase)
        check.same(refusal([&] { replay.ask(*asked, phase, Replay::message_of(*honest)); }), "secure-aggregation",
                   "after " + why);
  }
}

void noise(Check& check, const Json& said) {
  const auto source = [&said] {
    return NoiseSource::seeded(NoiseSource::key_material(said.at("seed").whole(), "share", 3, 2));
  };
  for (const Json& one : said.at("draws").list()) {
    NoiseSource drawn = source();
    const Integers found = skellam(drawn, one.at("variance").real(), one.at("numbers").list().size());
    check.holds(Clients(found.begin(), found.end()) == numbers_of(one.at("numbers")), "Skellam numbers");
  }
  NoiseSource small = source();
  check.same(refusal([&] { skellam(small, 19.0, 1); }), "unsupported-model", "a small variance");
  for (const Json& one : said.at("shares").list()) {
    const double bound = one.at("clipping_norm").real();
    const Floats update = clipped(one.at("vector").floats(), bound);
    const std::int64_t grid = one.at("grid").whole();
    NoiseSource coins = source();
    const Integers found = encode_update(update, bound, grid, coins);
    check.holds(Clients(found.begin(), found.end()) == numbers_of(one.at("integers")), "an encoded update");
    NoiseSource all = source();
    check.holds(noised_share(update, bound, grid, one.at("noise_multiplier").real(), one.at("cohort").whole(), all) ==
                    words_of(bytes_at(one, "words")),
                "a noised share");
  }
  for (const Json& one : said.at("epsilon").list()) {
    std::vector<double> renyi = renyi_of(1.0, one.at("noise_multiplier").real(), one.at("grid").whole());
    for (double& r : renyi) r *= one.at("releases").real();
    check.near(epsilon_of(renyi, one.at("delta").real()), one.at("epsilon").real(), 1e-9, "epsilon of Skellam noise");
  }
}

}  // namespace

void check_secure(Check& check, const Json& all) {
  const Json& said = all.at("secagg");
  primitives(check, said.at("primitives"));
  sharing(check, said.at("shamir"));
  graphs(check, said.at("graph"));
  sessions(check, said);
  noise(check, all.at("skellam"));
}

void attack_secure(const Attack& attack, const Json& all) {
  const Replay replay(all.at("secagg"));
  // The digest at the end is made anew, so that what is inside is read.
  const auto mended = [](const Bytes& bytes) {
    const Bytes inside = bytes.substr(0, bytes.size() - std::min<std::size_t>(16, bytes.size()));
    return inside + raw_sha256(inside).substr(0, 16);
  };
  for (const Json* one : replay.honest()) {
    const std::string& phase = one->at("phase").string();
    if (phase == "advertise") continue;
    attack(Replay::message_of(*one), [&](const Bytes& bytes) {
      const Bytes whole = mended(bytes);
      if (phase == "share") KeyList::read(whole);
      if (phase == "mask") SharesForYou::read(whole);
      if (phase == "confirm") SurvivorList::read(whole);
      if (phase == "reveal") Confirmations::read(whole);
    });
  }
  attack("{\"schema\":1,\"clients\":{\"3\":\"" + std::string(64, 'a') + "\"}}",
         [](const Bytes& bytes) { Roster::read(bytes); });
}

}  // namespace fedslm
