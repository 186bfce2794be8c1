// One client's part in one secure aggregation, each phase answered once: docs/protocol.md, section 8.
#pragma once

#include <memory>
#include <string>

#include "graph.h"
#include "secagg.h"
#include "shamir.h"

namespace fedslm {

// What one client draws for one session; wiped with it.
struct SessionSecrets {
  SecretBytes share_key = random_secret(kKeyBytes);
  SecretBytes mask_key = random_secret(kKeyBytes);
  SecretBytes seed = random_secret(kKeyBytes);
};

// Lives in memory alone: a process that ends has no session. A message that is refused, or that is not the
// next one, closes it, and its secrets are gone.
class Session {
 public:
  // Refuses a roster that has not this client with this identity.
  Session(const SecureTerms& terms, std::int64_t client, std::shared_ptr<const Identity> identity,
          std::shared_ptr<const Roster> roster, SessionSecrets secrets = {}, Draw draw = random_element);
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const SecureTerms& terms() const { return terms_; }
  Bytes advertise();                            // -> Advertisement
  Bytes share(std::string_view key_list);       // KeyList -> Shares
  // Checks who shared and opens what is for this client, before anything is trained.
  // Returns n, the number of announced clients.
  std::int64_t accept(std::string_view shares_for_you);
  Bytes mask(const Words& vector);              // -> MaskedInput
  Bytes confirm(std::string_view survivors);    // SurvivorList -> Confirmation
  Bytes reveal(std::string_view confirmations);  // Confirmations -> Reveals

 private:
  enum class Phase { begun, advertised, shared, accepted, masked, confirmed, closed };
  template <typename Work>
  auto step(Phase expected, Phase next, Work work);
  void close();
  Advertisement own() const;
  void announce(const KeyList& list);
  Clients sharing_neighbours() const;
  SecretBytes agreed(const SecretBytes& own, std::int64_t peer, bool masking) const;

  const SecureTerms terms_;
  const std::int64_t client_;
  const std::shared_ptr<const Identity> identity_;
  const std::shared_ptr<const Roster> roster_;
  std::unique_ptr<SessionSecrets> secrets_;
  const Draw draw_;
  Phase phase_ = Phase::begun;
  std::map<std::int64_t, Advertisement> entries_;
  Bounds bounds_;
  std::unique_ptr<Graph> graph_;
  Bytes view_;  // digest of all that was agreed on so far
  Clients sharers_, survivors_;
  std::map<std::int64_t, SecretBytes> held_;  // of each sharing neighbour: share of its seed, share of its mask key
};

}  // namespace fedslm
