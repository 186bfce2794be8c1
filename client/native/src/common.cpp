#include "common.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

namespace fedslm {
namespace {

static_assert(sizeof(float) == 4 && sizeof(double) == 8, "IEEE 754 is assumed");
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "vectors travel little-endian");

struct File {
  explicit File(const std::string& path)
      : descriptor(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)) {
    if (descriptor < 0) throw Refusal("model-not-found", "cannot read " + path);
    if (fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
      close(descriptor);
      throw Refusal("model-not-found", "no regular file: " + path);
    }
  }
  ~File() { close(descriptor); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  std::size_t piece(char* out, std::size_t size) const {
    ssize_t got;
    do got = ::read(descriptor, out, size);
    while (got < 0 && errno == EINTR);
    if (got < 0) throw Refusal("model-not-found", "a file cannot be read to its end");
    return static_cast<std::size_t>(got);
  }
  int descriptor;
  struct stat status {};
};

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

class Hash {
 public:
  Hash() : state_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    if (!state_ || EVP_DigestInit_ex(state_.get(), EVP_sha256(), nullptr) != 1) throw std::bad_alloc();
  }
  void add(const char* data, std::size_t size) { EVP_DigestUpdate(state_.get(), data, size); }
  std::string done() {
    unsigned char out[EVP_MAX_MD_SIZE];
    unsigned int size = 0;
    EVP_DigestFinal_ex(state_.get(), out, &size);
    return hex({reinterpret_cast<char*>(out), size});
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> state_;
};

}  // namespace

std::string hex(std::string_view bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string out;
  out.reserve(2 * bytes.size());
  for (unsigned char byte : bytes) {
    out += digits[byte >> 4];
    out += digits[byte & 15];
  }
  return out;
}

Bytes unhex(std::string_view text) {
  require(text.size() % 2 == 0, "hexadecimal text has an odd length");
  Bytes out;
  out.reserve(text.size() / 2);
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = digit(text[i]), low = digit(text[i + 1]);
    require(high >= 0 && low >= 0, "hexadecimal text has another letter");
    out += static_cast<char>(high * 16 + low);
  }
  return out;
}

std::string base64(std::string_view bytes) {
  std::string out(4 * ((bytes.size() + 2) / 3) + 1, '\0');
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                   reinterpret_cast<const unsigned char*>(bytes.data()),
                                   static_cast<int>(bytes.size()));
  out.resize(static_cast<std::size_t>(size));
  return out;
}

Bytes unbase64(std::string_view text) {
  Bytes out(text.size(), '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()),
                                   reinterpret_cast<const unsigned char*>(text.data()),
                                   static_cast<int>(text.size()));
  require(size >= 0, "text is no base64");
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  out.resize(static_cast<std::size_t>(size) - padding);
  return out;
}

std::string sha256(std::string_view bytes) {
  Hash hash;
  hash.add(bytes.data(), bytes.size());
  return hash.done();
}

bool is_digest(std::string_view text) {
  if (text.size() != 64) return false;
  for (char c : text)
    if (digit(c) < 0) return false;
  return true;
}

bool ed25519_holds(const Bytes& key, const Bytes& signature, std::string_view text) {
  const auto bytes = [](std::string_view data) { return reinterpret_cast<const unsigned char*>(data.data()); };
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> public_key(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, bytes(key), key.size()), EVP_PKEY_free);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> digest(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  return public_key && digest && EVP_DigestVerifyInit(digest.get(), nullptr, nullptr, nullptr, public_key.get()) == 1 &&
         EVP_DigestVerify(digest.get(), bytes(signature), signature.size(), bytes(text), text.size()) == 1;
}

Bytes read_file(const std::string& path, std::size_t most) {
  const File file(path);
  const auto size = static_cast<std::uint64_t>(file.status.st_size);
  if (size > most) throw Refusal("model-not-found", "larger than is read: " + path);
  Bytes out(static_cast<std::size_t>(size) + 1, '\0');
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t got = file.piece(out.data() + done, out.size() - done);
    if (got == 0) break;
    done += got;
  }
  if (done > most) throw Refusal("model-not-found", "grows while it is read: " + path);
  out.resize(done);
  return out;
}

std::pair<std::uint64_t, std::string> hash_file(const std::string& path) {
  const File file(path);
  Hash hash;
  std::vector<char> piece(std::size_t{1} << 20);
  std::uint64_t size = 0;
  while (const std::size_t got = file.piece(piece.data(), piece.size())) {
    hash.add(piece.data(), got);
    size += got;
  }
  return {size, hash.done()};
}

void random_bytes(unsigned char* out, std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = getrandom(out + done, size - done, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw Refusal("unexpected", "the system gives no random bytes");
    done += static_cast<std::size_t>(got);
  }
}

Floats floats_of(std::string_view bytes) {
  require(bytes.size() % sizeof(float) == 0, "a vector has no whole number of float32");
  Floats out(bytes.size() / sizeof(float));
  if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

Bytes bytes_of(const float* values, std::size_t count) {
  return Bytes(reinterpret_cast<const char*>(values), count * sizeof(float));
}

}  // namespace fedslm
