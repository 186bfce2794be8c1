#include "skellam.h"

#include <algorithm>
#include <cmath>

namespace fedslm {
namespace {

constexpr double kSmallestMean = 10, kLargestMean = 0x1p52;
constexpr std::size_t kBlock = std::size_t{1} << 15;
constexpr double kRaised = 1.01, kLowered = 0.005, kFirstStirling = 16;
constexpr int kAttempts = 4;
constexpr double kRoundingReach = 3;

// log k! - log(sqrt(2 pi k) (k/e)^k) for k >= 16.
double stirling_error(double k) {
  const double inverse = 1.0 / k, square = inverse * inverse;
  const double tail = square * (1.0 / 1680 - square * (1.0 / 1188 - square * (691.0 / 360360)));
  return inverse * (1.0 / 12 - square * (1.0 / 360 - square * (1.0 / 1260 - tail)));
}

// k log(k / mean) + mean - k without cancellation; `away` is k - mean.
double deviance(double k, double away, double mean) {
  const double v = away / (k + mean), square = v * v;
  if (std::fabs(v) >= 0.1) return k * std::log(k / mean) - away;
  double series = 1.0 / 17;
  for (int j = 15; j > 1; j -= 2) series = series * square + 1.0 / j;
  return away * v + 2.0 * k * v * square * series;
}

// Logarithm of the Poisson probability of floor(mean) + distance (Loader 2000).
double log_probability(double mean, double distance) {
  const double whole = std::floor(mean), k = whole + distance, away = distance - (mean - whole);
  if (k < kFirstStirling) return k * std::log(mean) - mean - std::lgamma(k + 1.0);
  return -stirling_error(k) - deviance(k, away, mean) - (0.5 * std::log(k) + 0.5 * std::log(2.0 * M_PI));
}

// Transformed rejection with a squeeze (Hormann 1993); docs/protocol.md has its constants.
Doubles poisson(NoiseSource& source, double mean, std::size_t count) {
  const double b = 0.931 + 2.53 * std::sqrt(mean), a = -0.059 + 0.02483 * b;
  const double inverse_alpha = kRaised * (1.1239 + 1.1328 / (b - 3.4));
  const double surely = (0.9277 - 3.6224 / (b - 2.0) - kLowered) / kRaised;
  const double whole = std::floor(mean);
  Doubles found;
  found.reserve(count);
  while (found.size() < count) {
    const auto most = static_cast<std::size_t>(1.2 * static_cast<double>(count - found.size())) + 16;
    const std::size_t size = std::min(kBlock, most);
    const Secret<std::uint64_t> drawn = source.words(2 * size);
    for (std::size_t i = 0; i < size && found.size() < count; ++i) {
      const double u = (static_cast<double>(drawn[i] >> 11) - 0x1p52 + 0.5) * 0x1p-53;
      const double v = (static_cast<double>(drawn[size + i]) + 0.5) * 0x1p-64;
      const double room = 0.5 - std::fabs(u);
      const double distance = std::floor((2.0 * a / room + b) * u + (mean - whole + 0.43));
      bool kept = room >= 0.07 && v <= surely;
      if (!kept && distance >= -whole && (room >= 0.013 || v <= room))
        kept = std::log(v * inverse_alpha / (a / (room * room) + b)) <= log_probability(mean, distance);
      if (kept) found.push_back(distance + whole);
    }
  }
  return found;
}

// Whether integers have L2 norm at most `grid`, exactly.
bool within(const Integers& values, std::int64_t grid) {
  std::int64_t squares = 0;
  for (std::int64_t value : values) {
    if (value > grid || value < -grid) return false;
    squares += value * value;
    if (squares > grid * grid) return false;
  }
  return true;
}

// The factor that leaves room for rounding at random.
double shrink_of(const Doubles& exact, std::int64_t grid) {
  double squares = 0, l1 = 0;
  for (double x : exact) {
    squares += x * x;
    l1 += std::fabs(x);
  }
  const double l2 = std::sqrt(squares), most = static_cast<double>(grid) * static_cast<double>(grid);
  const double quarter = static_cast<double>(exact.size()) / 4.0;
  const auto needs = [&](double s) {
    const double added = std::min(quarter, s * l1);
    return (s * l2) * (s * l2) + added + kRoundingReach * (s * l2 + std::sqrt(added));
  };
  if (needs(1.0) <= most) return 1.0;
  double low = 0, high = std::min(1.0, static_cast<double>(grid) / l2);
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2.0;
    (needs(middle) <= most ? low : high) = middle;
  }
  return low;
}

}  // namespace

Integers skellam(NoiseSource& source, double variance, std::size_t count) {
  const double mean = variance / 2.0;
  if (!(mean >= kSmallestMean && mean <= kLargestMean))
    throw Refusal("unsupported-model", "a share of the noise is below or above what this client draws");
  const Doubles up = poisson(source, mean, count), down = poisson(source, mean, count);
  Integers out(count);
  for (std::size_t i = 0; i < count; ++i)
    out[i] = static_cast<std::int64_t>(up[i]) - static_cast<std::int64_t>(down[i]);
  return out;
}

Integers encode_update(const Floats& clipped, double bound, std::int64_t grid, NoiseSource& source) {
  if (!(grid >= 1 && grid <= kLargestGrid && bound > 0 && std::isfinite(bound)))
    throw Refusal("sensitivity", "an update has no bound, or no grid");
  Doubles exact(clipped.begin(), clipped.end());
  if (!std::isfinite(norm_of(clipped))) std::fill(exact.begin(), exact.end(), 0.0);
  const double scale = static_cast<double>(grid) / bound;
  for (double& x : exact) x *= scale;
  const double shrink = shrink_of(exact, grid);
  for (double& x : exact) x *= shrink;
  Integers found(exact.size());
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const Doubles coins = source.uniform(exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i) {
      const double below = std::floor(exact[i]);
      found[i] = static_cast<std::int64_t>(below + (coins[i] < exact[i] - below ? 1.0 : 0.0));
    }
    if (within(found, grid)) return found;
  }
  for (std::size_t i = 0; i < exact.size(); ++i) found[i] = static_cast<std::int64_t>(std::trunc(exact[i]));
  if (!within(found, grid)) throw Refusal("sensitivity", "an encoded update is not within its grid");
  return found;
}

Words noised_share(const Floats& clipped, double bound, std::int64_t grid, double noise_multiplier,
                   std::int64_t cohort, NoiseSource& source) {
  if (cohort < 1) throw Refusal("sensitivity", "a share of the noise is of no cohort");
  const Integers integers = encode_update(clipped, bound, grid, source);
  const double deviation = noise_multiplier * static_cast<double>(grid);
  const Integers noise = skellam(source, deviation * deviation / static_cast<double>(cohort), integers.size());
  Words out(integers.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::uint32_t>(static_cast<std::uint64_t>(integers[i]) + static_cast<std::uint64_t>(noise[i]));
  return out;
}

}  // namespace fedslm
