// Bytes, hashes, files, refusals: what everything else stands on.
#pragma once

#include <openssl/crypto.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace fedslm {

using Bytes = std::string;

// Why something is not done: a code of docs/errors.md, which may travel, and a line, which may not.
class Refusal : public std::runtime_error {
 public:
  Refusal(std::string code_of_errors, const std::string& why)
      : std::runtime_error(why), code(std::move(code_of_errors)) {}
  const std::string code;
};

[[noreturn]] inline void mismatch(const std::string& why) { throw Refusal("schema-mismatch", why); }
[[noreturn]] inline void refuse(const std::string& why) { throw Refusal("policy-refused", why); }

inline void require(bool holds, const char* why) {
  if (!holds) mismatch(why);
}

// Overwrites what it gives back.
template <typename T>
struct Wiping {
  using value_type = T;
  Wiping() = default;
  template <typename U>
  Wiping(const Wiping<U>&) {}
  T* allocate(std::size_t n) {
    if (n > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_alloc();
    return static_cast<T*>(::operator new(n * sizeof(T)));
  }
  void deallocate(T* p, std::size_t n) {
    OPENSSL_cleanse(p, n * sizeof(T));
    ::operator delete(p);
  }
  template <typename U>
  bool operator==(const Wiping<U>&) const { return true; }
  template <typename U>
  bool operator!=(const Wiping<U>&) const { return false; }
};

// For private numbers: tokens, gradients, noise, factors between two steps.
template <typename T>
using Secret = std::vector<T, Wiping<T>>;
using Floats = Secret<float>;
using Doubles = Secret<double>;

std::string hex(std::string_view bytes);
Bytes unhex(std::string_view text);
std::string base64(std::string_view bytes);
Bytes unbase64(std::string_view text);
std::string sha256(std::string_view bytes);  // in hexadecimal
bool is_digest(std::string_view text);       // 64 digits, lower case

// Ed25519 (RFC 8032) over a text.
bool ed25519_holds(const Bytes& public_key, const Bytes& signature, std::string_view text);

Bytes read_file(const std::string& path, std::size_t most);
// Size and SHA-256 of a regular file, read in pieces.
std::pair<std::uint64_t, std::string> hash_file(const std::string& path);
void random_bytes(unsigned char* out, std::size_t size);

Floats floats_of(std::string_view bytes);  // little-endian float32
Bytes bytes_of(const float* values, std::size_t count);

}  // namespace fedslm
