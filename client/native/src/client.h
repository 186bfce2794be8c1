// One device: answers contents, whatever brings them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "ledger.h"
#include "noise.h"
#include "objects.h"
#include "secure.h"
#include "step.h"

namespace fedslm {

// What gives a gradient of one example at the factors that train.
using GradientOf = std::function<Floats(std::size_t example, const Floats& moving)>;

// Steps of DP-SGD: each a Poisson-subsampled Gaussian at sensitivity `clip`, empty samples too.
Floats private_steps(const Floats& start, std::size_t examples, std::int64_t steps, std::int64_t batch,
                     double rate, double clip, double noise, double probability, NoiseSource& source,
                     const GradientOf& gradient);
// Plain steps over random batches, without protection of their own.
Floats plain_steps(const Floats& start, std::size_t examples, std::int64_t steps, std::int64_t batch,
                   double rate, NoiseSource& source, const GradientOf& gradient);

class Client {
 public:
  explicit Client(const Config& config);
  const Config& config() const { return config_; }
  double epsilon() const { return ledger_.epsilon(config_.delta); }
  std::size_t answers() const { return ledger_.answers(); }

  // Called before each example is touched and before an update is given; ends the work by a Refusal.
  void watch(std::function<void()> may_go_on) { may_go_on_ = std::move(may_go_on); }
  // Answers a message of a kind; what goes wrong is a Refusal.
  Tree answer(const std::string& kind, const Content& content, const std::string& scenario,
              const std::string& plan);

 private:
  // Checks an instruction, charges it and trains: the change of the factors, clipped where the mode clips it.
  Floats trained(const Content& content, const Terms& terms);
  NoiseSource noise_of(const Terms& terms, const std::string& name, std::int64_t server_round) const;
  const Config config_;
  const Manifest manifest_;
  std::unique_ptr<Engine> engine_;
  Ledger ledger_;
  std::function<void()> may_go_on_ = [] {};
  SecurePart secure_;
};

}  // namespace fedslm
