#include "secure.h"

#include "files.h"

namespace fedslm {

std::string identity_in(const std::string& folder) {
  const std::string path = folder + "/identity.key";
  if (!exists(path)) {
    const SecretBytes drawn = random_secret(kKeyBytes);
    replace_private(path, std::string_view(reinterpret_cast<const char*>(drawn.data()), drawn.size()));
  }
  return hex(Identity(secret_of(read_private(path, 1 << 10))).public_key());
}

SecurePart::SecurePart(const Config& config) : client_(config.client_index), min_cohort_(config.min_cohort) {
  if (config.mode != "client-distributed") return;
  const Bytes key = read_private(config.identity, 1 << 10), roster = read_file(config.roster, std::size_t{16} << 20);
  if (sha256(roster) != config.roster_digest) refuse("roster: the file is not the pinned one");
  identity_ = std::make_shared<const Identity>(secret_of(key));
  roster_ = std::make_shared<const Roster>(Roster::read(roster));
}

Tree SecurePart::answer(const Content& content, const Terms& terms, std::int64_t dimension, const ShareOf& share) {
  const std::string phase = text_of(content.header, "phase");
  try {
    if (!identity_ || !terms.secure()) refuse("this client takes no part in secure aggregation");
    const Bytes answered = next(content, phase, bytes_of(content.header, "payload"), terms, dimension, share);
    if (phase == "reveal") session_.reset();
    return encode_phase(phase, answered);
  } catch (...) {
    session_.reset();
    throw;
  }
}

Bytes SecurePart::next(const Content& content, const std::string& phase, const Bytes& payload, const Terms& terms,
                       std::int64_t dimension, const ShareOf& share) {
  const std::string& run = text_of(content.header, "run-id");
  const std::int64_t server_round = whole_of(content.header, "server-round");
  require(content.has_vector == (phase == "mask"), "a phase has a vector that it should not have, or has none");
  if (phase == "advertise") {
    // On the client's own terms: only the name of the session comes from the server.
    const SecureTerms own{run, server_round, payload, terms.config_digest, terms.plan_digest,
                          terms.honest_fraction, terms.survivor_fraction, terms.min_cohort, dimension};
    session_.reset();
    session_ = std::make_unique<Session>(own, client_, identity_, roster_);
    return session_->advertise();
  }
  if (!session_) unsafe("no session is open; a refused message ends one for good");
  if (session_->terms().run_id != run || session_->terms().server_round != server_round ||
      session_->terms().config_digest != terms.config_digest || session_->terms().plan_digest != terms.plan_digest)
    unsafe("the open session belongs to another round");
  if (phase == "share") return session_->share(payload);
  if (phase == "mask") {
    // Who shared is checked before anything is charged or trained.
    const std::int64_t cohort = session_->accept(payload);
    if (cohort < min_cohort_) refuse("min_cohort: the announced cohort is smaller than the owner allows");
    return session_->mask(share(cohort));
  }
  if (phase == "confirm") return session_->confirm(payload);
  if (phase == "reveal") return session_->reveal(payload);
  mismatch("a phase that secure aggregation does not have");
}

}  // namespace fedslm
