#include "agreed.h"

#include <openssl/evp.h>
#include <openssl/kdf.h>

#include <algorithm>
#include <limits>
#include <set>

#include "json.h"

namespace fedslm {
namespace {

constexpr char kDomain[] = "fedslm-secagg-v1|";
constexpr unsigned char kNonce[12] = {};  // each key encrypts one message

using Pkey = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using PkeyContext = std::unique_ptr<EVP_PKEY_CTX, decltype(&EVP_PKEY_CTX_free)>;
using Cipher = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;
using Digest = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

const unsigned char* raw(std::string_view bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); }
unsigned char* raw(Bytes& bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

void must(bool holds) {
  if (!holds) throw Refusal("unexpected", "OpenSSL cannot compute secure aggregation");
}

Pkey private_key(int kind, const SecretBytes& own) {
  Pkey key(EVP_PKEY_new_raw_private_key(kind, nullptr, own.data(), own.size()), EVP_PKEY_free);
  must(key != nullptr);
  return key;
}

Bytes public_of(const Pkey& key) {
  Bytes out(kKeyBytes, '\0');
  std::size_t size = out.size();
  must(EVP_PKEY_get_raw_public_key(key.get(), raw(out), &size) == 1 && size == kKeyBytes);
  return out;
}

Bytes signed_part(const std::string& purpose, std::string_view context, std::int64_t client, std::string_view content) {
  Bytes out = kDomain + purpose + "|";
  out += context;
  out += write_integer(static_cast<std::uint64_t>(client));
  return out += content;
}

Bytes ends_of(std::int64_t sender, std::int64_t receiver) {
  return write_integer(static_cast<std::uint64_t>(sender)) + write_integer(static_cast<std::uint64_t>(receiver));
}

}  // namespace

SecretBytes secret_of(std::string_view bytes) { return SecretBytes(raw(bytes), raw(bytes) + bytes.size()); }

SecretBytes random_secret(std::size_t size) {
  SecretBytes out(size);
  random_bytes(out.data(), size);
  return out;
}

Bytes write_integer(std::uint64_t value, int size) {
  Bytes out;
  for (int i = size - 1; i >= 0; --i) out += static_cast<char>((value >> (8 * i)) & 255);
  return out;
}

Bytes raw_sha256(std::string_view bytes) {
  Bytes out(kKeyBytes, '\0');
  must(EVP_Digest(bytes.data(), bytes.size(), raw(out), nullptr, EVP_sha256(), nullptr) == 1);
  return out;
}

Bytes digest(const std::string& purpose, std::initializer_list<std::string_view> parts) {
  const Digest state(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  const Bytes head = kDomain + purpose + "|";
  Bytes out(kKeyBytes, '\0');
  must(state && EVP_DigestInit_ex(state.get(), EVP_sha256(), nullptr) == 1 &&
       EVP_DigestUpdate(state.get(), head.data(), head.size()) == 1);
  for (std::string_view part : parts) must(EVP_DigestUpdate(state.get(), part.data(), part.size()) == 1);
  must(EVP_DigestFinal_ex(state.get(), raw(out), nullptr) == 1);
  return out;
}

Bytes x25519_public(const SecretBytes& own) { return public_of(private_key(EVP_PKEY_X25519, own)); }

SecretBytes agree(const SecretBytes& own, std::string_view other) {
  const Pkey mine = private_key(EVP_PKEY_X25519, own);
  const Pkey theirs(EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, raw(other), other.size()), EVP_PKEY_free);
  must(theirs != nullptr);
  const PkeyContext context(EVP_PKEY_CTX_new(mine.get(), nullptr), EVP_PKEY_CTX_free);
  SecretBytes out(kKeyBytes);
  std::size_t size = out.size();
  must(context && EVP_PKEY_derive_init(context.get()) == 1 &&
       EVP_PKEY_derive_set_peer(context.get(), theirs.get()) == 1);
  const bool done = EVP_PKEY_derive(context.get(), out.data(), &size) == 1 && size == kKeyBytes;
  const SecretBytes zero(kKeyBytes, 0);
  if (!done || CRYPTO_memcmp(out.data(), zero.data(), kKeyBytes) == 0) unsafe("a public key is a point of small order");
  return out;
}

SecretBytes derive(const SecretBytes& secret, const std::string& purpose, std::string_view view,
                   std::string_view content, std::size_t length) {
  const Bytes info = kDomain + purpose + "|" + Bytes(content);
  SecretBytes out(length);
  std::size_t size = length;
  const PkeyContext context(EVP_PKEY_CTX_new_id(EVP_PKEY_HKDF, nullptr), EVP_PKEY_CTX_free);
  must(context && EVP_PKEY_derive_init(context.get()) == 1 &&
       EVP_PKEY_CTX_set_hkdf_md(context.get(), EVP_sha256()) == 1 &&
       EVP_PKEY_CTX_set1_hkdf_salt(context.get(), raw(view), static_cast<int>(view.size())) == 1 &&
       EVP_PKEY_CTX_set1_hkdf_key(context.get(), secret.data(), static_cast<int>(secret.size())) == 1 &&
       EVP_PKEY_CTX_add1_hkdf_info(context.get(), raw(info), static_cast<int>(info.size())) == 1 &&
       EVP_PKEY_derive(context.get(), out.data(), &size) == 1 && size == length);
  return out;
}

Bytes encrypt(const SecretBytes& secret, std::string_view view, std::int64_t sender, std::int64_t receiver,
              const SecretBytes& plain) {
  const Bytes ends = ends_of(sender, receiver), bound = Bytes(view) + ends;
  const SecretBytes key = derive(secret, "share", view, ends, kKeyBytes);
  const Cipher cipher(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  Bytes out(plain.size() + kTagBytes, '\0');
  int done = 0, last = 0;
  must(cipher && EVP_EncryptInit_ex(cipher.get(), EVP_chacha20_poly1305(), nullptr, key.data(), kNonce) == 1 &&
       EVP_EncryptUpdate(cipher.get(), nullptr, &done, raw(bound), static_cast<int>(bound.size())) == 1 &&
       EVP_EncryptUpdate(cipher.get(), raw(out), &done, plain.data(), static_cast<int>(plain.size())) == 1 &&
       static_cast<std::size_t>(done) == plain.size() &&
       EVP_EncryptFinal_ex(cipher.get(), raw(out) + done, &last) == 1 && last == 0 &&
       EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_AEAD_GET_TAG, kTagBytes, raw(out) + plain.size()) == 1);
  return out;
}

SecretBytes decrypt(const SecretBytes& secret, std::string_view view, std::int64_t sender, std::int64_t receiver,
                    std::string_view sealed) {
  require(sealed.size() >= kTagBytes, "a ciphertext has no tag");
  const Bytes ends = ends_of(sender, receiver), bound = Bytes(view) + ends;
  const SecretBytes key = derive(secret, "share", view, ends, kKeyBytes);
  const std::size_t size = sealed.size() - kTagBytes;
  Bytes tag(sealed.substr(size));
  const Cipher cipher(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  SecretBytes out(size);
  int done = 0, last = 0;
  must(cipher && EVP_DecryptInit_ex(cipher.get(), EVP_chacha20_poly1305(), nullptr, key.data(), kNonce) == 1 &&
       EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag.data()) == 1 &&
       EVP_DecryptUpdate(cipher.get(), nullptr, &done, raw(bound), static_cast<int>(bound.size())) == 1 &&
       EVP_DecryptUpdate(cipher.get(), out.data(), &done, raw(sealed), static_cast<int>(size)) == 1 &&
       static_cast<std::size_t>(done) == size);
  if (EVP_DecryptFinal_ex(cipher.get(), out.data() + done, &last) != 1)
    unsafe("the shares of client " + std::to_string(sender) + " are not authentic");
  return out;
}

KeyStream::KeyStream(const unsigned char* key, std::string_view nonce12) : context_(EVP_CIPHER_CTX_new()) {
  const Bytes start = Bytes(4, '\0') + Bytes(nonce12);  // block counter, then the nonce
  must(context_ && start.size() == 16);
  must(EVP_EncryptInit_ex(static_cast<EVP_CIPHER_CTX*>(context_), EVP_chacha20(), nullptr, key, raw(start)) == 1);
}

KeyStream::~KeyStream() { EVP_CIPHER_CTX_free(static_cast<EVP_CIPHER_CTX*>(context_)); }

void KeyStream::next(unsigned char* out, std::size_t size) {
  std::fill_n(out, size, static_cast<unsigned char>(0));
  int done = 0;
  must(size <= std::numeric_limits<int>::max() &&
       EVP_EncryptUpdate(static_cast<EVP_CIPHER_CTX*>(context_), out, &done, out, static_cast<int>(size)) == 1 &&
       static_cast<std::size_t>(done) == size);
}

Identity::Identity(SecretBytes own) : raw_(std::move(own)) {
  require(raw_.size() == kKeyBytes, "an identity key has not 32 bytes");
  public_ = public_of(private_key(EVP_PKEY_ED25519, raw_));
}

Bytes Identity::sign(const std::string& purpose, std::string_view context, std::int64_t client,
                     std::string_view content) const {
  const Pkey key = private_key(EVP_PKEY_ED25519, raw_);
  const Bytes text = signed_part(purpose, context, client, content);
  const Digest state(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  Bytes out(kSignatureBytes, '\0');
  std::size_t size = out.size();
  must(state && EVP_DigestSignInit(state.get(), nullptr, nullptr, nullptr, key.get()) == 1 &&
       EVP_DigestSign(state.get(), raw(out), &size, raw(text), text.size()) == 1 && size == kSignatureBytes);
  return out;
}

Roster::Roster(std::map<std::int64_t, Bytes> keys) : keys_(std::move(keys)) {
  std::set<Bytes> seen;
  for (const auto& [client, key] : keys_) {
    require(client >= 0 && client <= kMaxClient && key.size() == kKeyBytes, "a roster has an entry that is none");
    if (!seen.insert(key).second) unsafe("two clients of the roster have one identity key");
  }
}

Roster Roster::read(std::string_view text) {
  const Json said = parse_json(text);
  require(said.members.size() == 2 && said.at("schema").whole() == 1, "the roster is not one of schema 1");
  const Json& clients = said.at("clients");
  require(clients.kind == Json::Kind::object, "the roster is not one of schema 1");
  std::map<std::int64_t, Bytes> keys;
  for (const auto& [name, key] : clients.members) {
    const bool digits = !name.empty() && name.size() <= 10 && name.find_first_not_of("0123456789") == std::string::npos;
    require(digits && is_digest(key.string()), "the roster is not one of schema 1");
    require(keys.emplace(std::stoll(name), unhex(key.string())).second, "the roster names a client twice");
  }
  return Roster(std::move(keys));
}

const Bytes& Roster::public_key(std::int64_t client) const {
  const auto found = keys_.find(client);
  if (found == keys_.end()) unsafe("client " + std::to_string(client) + " is not in the roster");
  return found->second;
}

void Roster::verify(const std::string& purpose, std::string_view context, std::int64_t client,
                    std::string_view signature, std::string_view content) const {
  const Bytes& known = public_key(client);
  const Bytes text = signed_part(purpose, context, client, content);
  const Pkey key(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, raw(known), known.size()), EVP_PKEY_free);
  const Digest state(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (!key || !state || signature.size() != kSignatureBytes ||
      EVP_DigestVerifyInit(state.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
      EVP_DigestVerify(state.get(), raw(signature), signature.size(), raw(text), text.size()) != 1)
    unsafe("client " + std::to_string(client) + ": the signature of its " + purpose +
           " message does not fit its identity in the roster");
}

}  // namespace fedslm
