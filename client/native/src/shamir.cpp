#include "shamir.h"

namespace fedslm {
namespace {

// Nine limbs of 32 bits, the lowest first; no step of the arithmetic branches on a value.
constexpr std::size_t kLimbs = 9;
constexpr std::uint64_t kLow = 0xffffffff;
constexpr std::uint64_t kPast = 297;  // the prime is 2^256 + 297

using Element = Secret<std::uint32_t>;

Element element_of(const unsigned char* bytes, std::size_t size) {
  Element out(kLimbs, 0);
  for (std::size_t i = 0; i < size; ++i)
    out[i / 4] |= static_cast<std::uint32_t>(bytes[size - 1 - i]) << (8 * (i % 4));
  return out;
}

SecretBytes bytes_of(const Element& value) {
  SecretBytes out(kShareBytes);
  for (std::size_t i = 0; i < kShareBytes; ++i)
    out[kShareBytes - 1 - i] = static_cast<unsigned char>(value[i / 4] >> (8 * (i % 4)));
  return out;
}

// Whether a number of 257 bits is at least the prime; 0 or 1.
std::uint64_t too_large(const Element& value) {
  std::uint64_t borrow = 0;
  for (std::size_t i = 0; i < kLimbs; ++i) {
    const std::uint64_t prime = i == 0 ? kPast : i == kLimbs - 1 ? 1 : 0;
    borrow = ((static_cast<std::uint64_t>(value[i]) - prime - borrow) >> 32) & 1;
  }
  return 1 - borrow;
}

// value * x + added, modulo the prime; x is below 2^32.
void step(Element& value, std::uint32_t x, const Element& added) {
  std::uint64_t carry = 0;
  for (std::size_t i = 0; i < kLimbs; ++i) {
    carry += static_cast<std::uint64_t>(value[i]) * x + added[i];
    value[i] = static_cast<std::uint32_t>(carry & kLow);
    carry >>= 32;
  }
  // 2^256 is -297 in the field: what lies above goes, 297 times it is taken away.
  const std::uint64_t above = (carry << 32) + value[kLimbs - 1];
  value[kLimbs - 1] = 0;
  std::uint64_t take = above * kPast, borrow = 0;
  for (std::size_t i = 0; i < kLimbs; ++i) {
    const std::uint64_t part = (take & kLow) + borrow;
    const std::uint64_t left = static_cast<std::uint64_t>(value[i]) - part;
    value[i] = static_cast<std::uint32_t>(left & kLow);
    borrow = (left >> 32) & 1;
    take >>= 32;
  }
  // Below zero: the prime is added back.
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < kLimbs; ++i) {
    const std::uint64_t prime = i == 0 ? kPast : i == kLimbs - 1 ? 1 : 0;
    sum += static_cast<std::uint64_t>(value[i]) + borrow * prime;
    value[i] = static_cast<std::uint32_t>(sum & kLow);
    sum >>= 32;
  }
}

}  // namespace

SecretBytes random_element() {
  for (;;) {
    SecretBytes drawn = random_secret(kShareBytes);
    drawn[0] &= 1;
    if (!too_large(element_of(drawn.data(), kShareBytes))) return drawn;
  }
}

void require_element(const unsigned char* share) {
  if (share[0] > 1 || too_large(element_of(share, kShareBytes))) unsafe("a share is not an element of the field");
}

std::vector<SecretBytes> split(const SecretBytes& secret, std::int64_t threshold, std::int64_t count,
                               const Draw& draw) {
  if (!(threshold >= 2 && threshold <= count && count <= kMaxClient && secret.size() == kKeyBytes))
    throw Refusal("unexpected", "a secret cannot be shared like this");
  std::vector<Element> coefficients = {element_of(secret.data(), secret.size())};
  for (std::int64_t i = 1; i < threshold; ++i) {
    const SecretBytes drawn = draw();
    require_element(drawn.data());
    coefficients.push_back(element_of(drawn.data(), drawn.size()));
  }
  std::vector<SecretBytes> shares;
  for (std::int64_t point = 1; point <= count; ++point) {
    Element value(kLimbs, 0);
    for (auto next = coefficients.rbegin(); next != coefficients.rend(); ++next)
      step(value, static_cast<std::uint32_t>(point), *next);
    shares.push_back(bytes_of(value));
  }
  return shares;
}

}  // namespace fedslm
