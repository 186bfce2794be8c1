// What the owner of the device says, and what a run says: both must agree before anything is done.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "adapters.h"
#include "common.h"
#include "conditions.h"

namespace fedslm {

// The file of the owner with what enrolment wrote beside it; docs/native.md.
struct Config {
  static Config load(const std::string& path);

  std::string folder;  // of the file
  std::string host;
  int port = 0;
  std::string ca, key, step, factors, examples, state;  // paths
  std::string step_digest, factors_digest, config_digest;
  std::string server_key;  // Ed25519, hexadecimal; empty where the owner does not pin the server's ledger
  std::int64_t client_index = 0, max_rounds = 0;
  std::string mode;
  double max_epsilon = 0, delta = 0, min_noise_multiplier = 0, max_sampling_probability = 0;
  // Of mode client-distributed: the device's identity, who may be in a cohort, and whom the owner trusts.
  std::string identity, roster, roster_digest;
  std::int64_t min_cohort = 0;
  double honest_fraction = 0;
  bool rehearsal = false;
  Asked conditions;     // when the device may work
  AdapterRules adapters;  // which adapters the device takes
  bool fetches = false;   // whether it knows the key that signs them
  bool renews = false;  // whether there is a certificate to keep young
  double poll_seconds = 3, heartbeat_seconds = 60;
};

// What a run fixes; every number comes from texts whose digests were compared.
struct Terms {
  std::string config_digest, plan_digest, mode;
  bool seeded = false;
  std::int64_t seed = 0, rounds = 0, local_steps = 0, batch_size = 0, length = 0;
  double learning_rate = 0, clip = 0, noise_multiplier = 0, sampling_probability = 0;
  std::int64_t rank = 0;
  double alpha = 0;
  // Of mode client-distributed; fractions as they are spelt. The hidden noise is what the server cannot know.
  std::int64_t grid = 0, min_cohort = 0;
  std::string honest_fraction, survivor_fraction;
  double hidden_noise = 0;

  bool secure() const { return mode == "client-distributed"; }
  std::string stage() const { return mode == "example" ? "noised" : "clipped"; }
  // As the device counts: without the sampling of clients, which the server knows.
  double charged_probability() const { return mode == "example" ? sampling_probability : 1.0; }
  double charged_noise() const { return secure() ? hidden_noise : noise_multiplier; }
  std::int64_t charged_releases() const { return mode == "example" ? local_steps : 1; }
};

// Refuses a scenario that the owner did not approve, one that needs more than this client does,
// a plan that is not its own, and what is beyond the owner's limits.
Terms agree(const Config& config, const std::string& scenario, const std::string& plan);

}  // namespace fedslm
