// Distributed noise on an integer grid: docs/protocol.md, section 8.
#pragma once

#include "agreed.h"
#include "noise.h"

namespace fedslm {

using Integers = Secret<std::int64_t>;

constexpr std::int64_t kLargestGrid = 1 << 18;

// Differences of two Poisson numbers; exact. Refuses a variance below 20, which only cohorts of hundreds of
// thousands come to.
Integers skellam(NoiseSource& source, double variance, std::size_t count);
// A clipped update as integers of L2 norm at most `grid`, whatever it is.
Integers encode_update(const Floats& clipped, double bound, std::int64_t grid, NoiseSource& source);
// The update with this client's part of the noise, modulo 2^32; `cohort` clients add such parts.
Words noised_share(const Floats& clipped, double bound, std::int64_t grid, double noise_multiplier,
                   std::int64_t cohort, NoiseSource& source);

}  // namespace fedslm
