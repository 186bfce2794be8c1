#include "noise.h"

#include <openssl/evp.h>
#include <openssl/kdf.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "json.h"

namespace fedslm {
namespace {

constexpr std::size_t kKey = 32;
constexpr std::size_t kBlock = std::size_t{1} << 16;
constexpr char kDomain[] = "fedslm-noise-v1";
constexpr double kNormError = 0x1p-40, kMargin = 1e-9, kSmallest = 0x1p-149;
constexpr int kFirstOrder = 2, kLastOrder = 256;

void must(bool holds) {
  if (!holds) throw Refusal("unexpected", "OpenSSL cannot compute noise");
}

// A sum that is off by about one rounding, however long (Neumaier 1974).
class Sum {
 public:
  void add(double x) {
    const double next = sum_ + x;
    rest_ += std::fabs(sum_) >= std::fabs(x) ? (sum_ - next) + x : (x - next) + sum_;
    sum_ = next;
  }
  double value() const { return std::isfinite(sum_) ? sum_ + rest_ : sum_; }

 private:
  double sum_ = 0, rest_ = 0;
};

// Agarwal, Kairouz and Liu 2021 (arXiv:2110.04995), theorem 3.5.
std::vector<double> skellam_renyi(double q, double z, double grid) {
  if (q != 1.0) throw Refusal("unexpected", "Skellam noise is counted without sampling");
  const double square = 1.0 / (z * z);
  std::vector<double> out;
  for (int order = kFirstOrder; order <= kLastOrder; ++order) {
    const bool counted = order < 64 || order == 128 || order == 256;
    const double fine = ((2.0 * order - 1.0) + 6.0) * square * square / (4.0 * grid * grid);
    const double found = square * order / 2.0 + std::min(fine, 1.5 * square);
    out.push_back(counted ? found : std::numeric_limits<double>::infinity());
  }
  return out;
}

}  // namespace

NoiseSource NoiseSource::from_system() {
  Secret<unsigned char> key(kKey);
  random_bytes(key.data(), key.size());
  return NoiseSource(std::move(key));
}

NoiseSource NoiseSource::seeded(const std::string& key_material) {
  Secret<unsigned char> key(kKey);
  std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)> context(
      EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr), EVP_PKEY_CTX_free);
  std::size_t size = key.size();
  must(context && EVP_PKEY_derive_init(context.get()) == 1 &&
       EVP_PKEY_CTX_set_hkdf_md(context.get(), EVP_sha256()) == 1 &&
       EVP_PKEY_CTX_set1_hkdf_salt(context.get(), reinterpret_cast<const unsigned char*>(kDomain),
                                   sizeof kDomain - 1) == 1 &&
       EVP_PKEY_CTX_set1_hkdf_key(context.get(),
                                  reinterpret_cast<const unsigned char*>(key_material.data()),
                                  static_cast<int>(key_material.size())) == 1 &&
       EVP_PKEY_derive(context.get(), key.data(), &size) == 1 && size == kKey);
  return NoiseSource(std::move(key));
}

std::string NoiseSource::key_material(std::int64_t seed, const std::string& name, std::int64_t client,
                                      std::int64_t server_round) {
  return "[" + quoted(kDomain) + "," + std::to_string(seed) + "," + quoted(name) + "," +
         std::to_string(client) + "," + std::to_string(server_round) + "]";
}

Secret<std::uint64_t> NoiseSource::words(std::size_t count) {
  unsigned char nonce[16] = {};
  for (int i = 0; i < 8; ++i) nonce[8 + i] = static_cast<unsigned char>(calls_ >> (8 * i));
  ++calls_;
  Secret<std::uint64_t> out(count);  // zeros, which the key stream is added to in place
  std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)> stream(EVP_CIPHER_CTX_new(),
                                                                          EVP_CIPHER_CTX_free);
  must(stream && EVP_EncryptInit_ex(stream.get(), EVP_chacha20(), nullptr, key_.data(), nonce) == 1);
  auto* bytes = reinterpret_cast<unsigned char*>(out.data());
  for (std::size_t at = 0; at < 8 * count;) {
    const int piece = static_cast<int>(std::min(8 * count - at, std::size_t{1} << 24));
    int done = 0;
    must(EVP_EncryptUpdate(stream.get(), bytes + at, &done, bytes + at, piece) == 1 && done == piece);
    at += static_cast<std::size_t>(piece);
  }
  return out;
}

Doubles NoiseSource::uniform(std::size_t count) {
  const Secret<std::uint64_t> drawn = words(count);
  Doubles out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<double>(drawn[i] >> 11) * 0x1p-53;
  return out;
}

Doubles NoiseSource::normal(std::size_t count) {
  Doubles out(count);
  for (std::size_t start = 0; start < count; start += 2 * kBlock) {
    const std::size_t size = std::min(count - start, 2 * kBlock), half = (size + 1) / 2;
    const Doubles u = uniform(2 * half);
    for (std::size_t i = 0; i < half; ++i) {
      const double radius = std::sqrt(-2.0 * std::log1p(-u[i]));
      const double angle = 2.0 * M_PI * u[half + i];
      out[start + i] = radius * std::cos(angle);
      if (half + i < size) out[start + half + i] = radius * std::sin(angle);
    }
  }
  return out;
}

Secret<std::size_t> NoiseSource::poisson_subsample(std::size_t count, double probability) {
  Secret<std::size_t> taken;
  for (std::size_t start = 0; start < count; start += kBlock) {
    const Doubles coins = uniform(std::min(kBlock, count - start));
    for (std::size_t i = 0; i < coins.size(); ++i)
      if (coins[i] < probability) taken.push_back(start + i);
  }
  return taken;
}

std::size_t NoiseSource::below(std::size_t bound) {
  const std::uint64_t whole = std::numeric_limits<std::uint64_t>::max(), most = whole - whole % bound;
  for (;;) {
    const std::uint64_t word = words(1)[0];
    if (word < most) return static_cast<std::size_t>(word % bound);
  }
}

double norm_of(const Floats& vector) {
  Sum squares;
  for (float x : vector) {
    if (!std::isfinite(x)) return std::numeric_limits<double>::quiet_NaN();
    squares.add(static_cast<double>(x) * static_cast<double>(x));  // exact
  }
  return std::sqrt(squares.value());
}

double clip_factor(double norm, double bound) {
  if (norm <= bound * (1.0 - kNormError)) return 1.0;
  if (!(std::isfinite(norm) && bound >= kSmallest)) return 0.0;
  return bound / norm * (1.0 - kMargin);
}

Floats clipped(const Floats& vector, double bound) {
  const double factor = clip_factor(norm_of(vector), bound);
  if (factor == 1.0) return vector;
  Floats out(vector.size(), 0.0f);
  if (factor == 0.0) return out;
  for (std::size_t i = 0; i < vector.size(); ++i) {
    const double exact = static_cast<double>(vector[i]) * factor;
    float rounded = static_cast<float>(exact);
    if (std::fabs(static_cast<double>(rounded)) > std::fabs(exact)) rounded = std::nextafter(rounded, 0.0f);
    out[i] = rounded;
  }
  return out;
}

void add_scaled(Doubles& total, const Floats& vector, double factor) {
  if (factor == 0.0) return;
  for (std::size_t i = 0; i < total.size(); ++i) total[i] += factor * static_cast<double>(vector[i]);
}

Floats change(const Floats& before, const Floats& after) {
  Floats out(after.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = after[i] - before[i];
  if (!std::isfinite(norm_of(out))) std::fill(out.begin(), out.end(), 0.0f);
  return out;
}

std::vector<double> renyi_of(double sampling_probability, double noise_multiplier, std::int64_t grid) {
  const double q = sampling_probability, s = noise_multiplier;
  if (grid > 0) return skellam_renyi(q, s, static_cast<double>(grid));
  std::vector<double> out;
  for (int order = kFirstOrder; order <= kLastOrder; ++order) {
    std::vector<double> terms;
    for (int k = 0; k <= order; ++k) {
      if (q == 1.0 && k < order) continue;
      const double rest = k == order ? 0.0 : (order - k) * std::log1p(-q);
      terms.push_back(std::lgamma(order + 1.0) - std::lgamma(k + 1.0) - std::lgamma(order - k + 1.0) +
                      k * std::log(q) + rest + (1.0 * k * k - k) / (2 * s * s));
    }
    const double top = *std::max_element(terms.begin(), terms.end());
    Sum sum;
    for (double term : terms) sum.add(std::exp(term - top));
    out.push_back((top + std::log(sum.value())) / (order - 1));
  }
  return out;
}

double epsilon_of(const std::vector<double>& renyi, double delta) {
  double best = std::numeric_limits<double>::infinity();
  for (int order = kFirstOrder; order <= kLastOrder; ++order) {
    const double r = renyi[static_cast<std::size_t>(order - kFirstOrder)];
    const double found = r + std::log1p(-1.0 / order) - std::log(delta * order) / (order - 1);
    best = std::isnan(found) ? best : std::min(best, found);
  }
  return std::max(0.0, best);
}

}  // namespace fedslm
