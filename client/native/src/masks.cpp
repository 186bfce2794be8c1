#include "masks.h"

#include <algorithm>

namespace fedslm {
namespace {

constexpr std::size_t kStreamBytes = kKeyBytes + 12;
constexpr std::size_t kBlock = std::size_t{1} << 13;

}  // namespace

SecretBytes self_mask_key(const SecretBytes& seed, std::string_view view, std::int64_t client) {
  return derive(seed, "self mask", view, write_integer(static_cast<std::uint64_t>(client)), kStreamBytes);
}

SecretBytes pair_mask_key(const SecretBytes& secret, std::string_view view, std::int64_t one, std::int64_t other) {
  const Bytes ends = write_integer(static_cast<std::uint64_t>(std::min(one, other))) +
                     write_integer(static_cast<std::uint64_t>(std::max(one, other)));
  return derive(secret, "pair mask", view, ends, kStreamBytes);
}

void add_mask(Words& total, const SecretBytes& key, bool subtract) {
  KeyStream stream(key.data(), std::string_view(reinterpret_cast<const char*>(key.data()) + kKeyBytes, 12));
  SecretBytes part(4 * kBlock);
  for (std::size_t start = 0; start < total.size(); start += kBlock) {
    const std::size_t size = std::min(kBlock, total.size() - start);
    stream.next(part.data(), 4 * size);
    for (std::size_t i = 0; i < size; ++i) {
      std::uint32_t word = 0;
      for (int byte = 3; byte >= 0; --byte) word = word << 8 | part[4 * i + static_cast<std::size_t>(byte)];
      total[start + i] += subtract ? 0u - word : word;
    }
  }
}

}  // namespace fedslm
