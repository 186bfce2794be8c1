// Shamir's sharing of 32-byte secrets over the prime field of order 2^256 + 297: docs/protocol.md, section 8.
#pragma once

#include <functional>
#include <vector>

#include "agreed.h"

namespace fedslm {

constexpr std::size_t kShareBytes = 33;

// Gives 33 bytes, big endian, of a uniform field element.
using Draw = std::function<SecretBytes()>;
SecretBytes random_element();

// The shares of the points 1 to `count`, 33 bytes each; any `threshold` of them give the secret back.
std::vector<SecretBytes> split(const SecretBytes& secret, std::int64_t threshold, std::int64_t count,
                               const Draw& draw = random_element);
// Refuses bytes that are no field element.
void require_element(const unsigned char* share);

}  // namespace fedslm
