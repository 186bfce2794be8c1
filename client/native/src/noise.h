// Coins, noise, clip and cost: docs/protocol.md, section 5. All in double precision.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common.h"

namespace fedslm {

// A ChaCha20 key stream; every call draws from a part of its own. Its key is wiped with it.
class NoiseSource {
 public:
  static NoiseSource from_system();
  // Reproducible: for rehearsals and test vectors. Protects nobody from who knows the seed.
  static NoiseSource seeded(const std::string& key_material);
  static std::string key_material(std::int64_t seed, const std::string& name, std::int64_t client,
                                  std::int64_t server_round);
  NoiseSource(NoiseSource&&) = default;
  NoiseSource(const NoiseSource&) = delete;
  NoiseSource& operator=(const NoiseSource&) = delete;

  Secret<std::uint64_t> words(std::size_t count);
  Doubles uniform(std::size_t count);
  Doubles normal(std::size_t count);
  // Takes each of so many with a coin of its own; ascending.
  Secret<std::size_t> poisson_subsample(std::size_t count, double probability);
  std::size_t below(std::size_t bound);  // uniform, by rejection

 private:
  explicit NoiseSource(Secret<unsigned char> key) : key_(std::move(key)) {}
  Secret<unsigned char> key_;
  std::uint64_t calls_ = 0;
};

double norm_of(const Floats& vector);  // NaN or infinite if a coordinate is
// What a vector of a norm is multiplied by to be within a bound; 0 if the norm is not finite.
double clip_factor(double norm, double bound);
// The update of a client, no longer than the bound in exact arithmetic.
Floats clipped(const Floats& vector, double bound);
void add_scaled(Doubles& total, const Floats& vector, double factor);
// after - before; zero if it is not finite.
Floats change(const Floats& before, const Floats& after);

// Renyi divergences of one release at the whole orders 2 to 256; they add up over releases. With a grid it is
// of Skellam noise, which counts without sampling and at the orders that fedslm counts at.
std::vector<double> renyi_of(double sampling_probability, double noise_multiplier, std::int64_t grid = 0);
double epsilon_of(const std::vector<double>& renyi, double delta);

}  // namespace fedslm
