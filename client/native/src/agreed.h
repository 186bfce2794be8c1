// Keys, signatures and encryption of secure aggregation: docs/protocol.md, section 8. All of it by OpenSSL.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common.h"

namespace fedslm {

using SecretBytes = Secret<unsigned char>;
using Words = Secret<std::uint32_t>;

constexpr std::size_t kKeyBytes = 32, kSignatureBytes = 64, kTagBytes = 16;
constexpr std::int64_t kMaxClient = 0xffffffff;

[[noreturn]] inline void unsafe(const std::string& why) { throw Refusal("secure-aggregation", why); }

SecretBytes secret_of(std::string_view bytes);
SecretBytes random_secret(std::size_t size);
Bytes write_integer(std::uint64_t value, int size = 4);  // big endian

// SHA-256 over a purpose and parts of public length, 32 bytes.
Bytes digest(const std::string& purpose, std::initializer_list<std::string_view> parts);
Bytes raw_sha256(std::string_view bytes);

Bytes x25519_public(const SecretBytes& own);
// Refuses a point of small order, which would make the secret known to all.
SecretBytes agree(const SecretBytes& own, std::string_view other);
// HKDF-SHA256 with the view as salt.
SecretBytes derive(const SecretBytes& secret, const std::string& purpose, std::string_view view,
                   std::string_view content, std::size_t length);

// ChaCha20-Poly1305 under a key that encrypts this one message.
Bytes encrypt(const SecretBytes& secret, std::string_view view, std::int64_t sender, std::int64_t receiver,
              const SecretBytes& plain);
SecretBytes decrypt(const SecretBytes& secret, std::string_view view, std::int64_t sender, std::int64_t receiver,
                    std::string_view sealed);

// The key stream of ChaCha20 (RFC 8439) with block counter 0.
class KeyStream {
 public:
  KeyStream(const unsigned char* key, std::string_view nonce12);
  ~KeyStream();
  KeyStream(const KeyStream&) = delete;
  KeyStream& operator=(const KeyStream&) = delete;
  void next(unsigned char* out, std::size_t size);

 private:
  void* context_;
};

// The long-lived signing key of one client (Ed25519).
class Identity {
 public:
  explicit Identity(SecretBytes raw);
  const Bytes& public_key() const { return public_; }
  Bytes sign(const std::string& purpose, std::string_view context, std::int64_t client,
             std::string_view content = "") const;

 private:
  SecretBytes raw_;
  Bytes public_;
};

// The identity keys of all clients, from the owner and never from the server.
class Roster {
 public:
  explicit Roster(std::map<std::int64_t, Bytes> keys);
  static Roster read(std::string_view json);  // {"schema": 1, "clients": {"0": "<64 digits>"}}
  const Bytes& public_key(std::int64_t client) const;
  // Refuses a signature that is not this client's for this purpose.
  void verify(const std::string& purpose, std::string_view context, std::int64_t client, std::string_view signature,
              std::string_view content = "") const;

 private:
  std::map<std::int64_t, Bytes> keys_;
};

}  // namespace fedslm
