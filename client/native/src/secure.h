// A client's part in the phases of a secure aggregation, between the transport and the protocol.
#pragma once

#include <functional>
#include <memory>

#include "config.h"
#include "objects.h"
#include "session.h"

namespace fedslm {

// The public key by which rosters know a device; its own key is made in the folder where there is none.
std::string identity_in(const std::string& folder);

// Trains and returns the noised share of a cohort of so many clients.
using ShareOf = std::function<Words(std::int64_t cohort)>;

class SecurePart {
 public:
  // Reads identity and roster where the owner's mode is client-distributed.
  explicit SecurePart(const Config& config);
  // Answers a phase; whatever is refused ends the session, so a server that is caught once learns nothing more
  // in this round.
  Tree answer(const Content& content, const Terms& terms, std::int64_t dimension, const ShareOf& share);

 private:
  Bytes next(const Content& content, const std::string& phase, const Bytes& payload, const Terms& terms,
             std::int64_t dimension, const ShareOf& share);
  const std::int64_t client_;
  const std::int64_t min_cohort_;
  std::shared_ptr<const Identity> identity_;
  std::shared_ptr<const Roster> roster_;
  std::unique_ptr<Session> session_;
};

}  // namespace fedslm
