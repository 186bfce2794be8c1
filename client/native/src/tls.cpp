#include "tls.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <openssl/pem.h>
#include <openssl/x509_vfy.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cstdlib>

namespace fedslm {
namespace {

constexpr int kSeconds = 30;
constexpr std::size_t kMostCertificates = 8;
constexpr std::size_t kLongestCertificate = 65536;

[[noreturn]] void away(const std::string& why) { throw Refusal("server-unreachable", why); }
[[noreturn]] void invalid(const std::string& why) { throw Refusal("certificate-invalid", why); }

int connected(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) away("the server's name is unknown");
  int socket_of = -1;
  for (const addrinfo* one = found; one != nullptr && socket_of < 0; one = one->ai_next) {
    socket_of = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    if (socket_of < 0) continue;
    const timeval limit{kSeconds, 0};
    setsockopt(socket_of, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(socket_of, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (connect(socket_of, one->ai_addr, one->ai_addrlen) != 0) {
      close(socket_of);
      socket_of = -1;
    }
  }
  freeaddrinfo(found);
  if (socket_of < 0) away("the server does not answer");
  return socket_of;
}

Certificate certificate_in(const std::string& pem) {
  const MemoryBio in = memory_of(pem);
  Certificate found(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
  if (!found) invalid("a file holds no certificate that can be read");
  return found;
}

void identify(SSL_CTX* context, const TlsOptions& options) {
  if (!options.anyone) {
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, nullptr);
    if (X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate_in(options.ca).get()) != 1)
      throw std::bad_alloc();
  }
  if (options.certificate.empty()) return;
  const KeyPointer key = private_key(options.key);
  if (SSL_CTX_use_certificate(context, certificate_in(options.certificate).get()) != 1 ||
      SSL_CTX_use_PrivateKey(context, key.get()) != 1)
    invalid("the device's certificate is not of its key");
}

}  // namespace

MemoryBio memory_of(std::string_view data) {
  return MemoryBio(BIO_new_mem_buf(data.data(), static_cast<int>(data.size())));
}

Bytes text_of_memory(const MemoryBio& memory) {
  char* text = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &text);
  return Bytes(text, static_cast<std::size_t>(size));
}

KeyPointer private_key(std::string_view pem) {
  const MemoryBio in = memory_of(pem);
  KeyPointer key(PEM_read_bio_PrivateKey(in.get(), nullptr, nullptr, const_cast<char*>("")));
  if (!key || EVP_PKEY_get_base_id(key.get()) != EVP_PKEY_EC) invalid("the device's key is no ECDSA key in PKCS 8");
  return key;
}

Address::Address(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0) throw Refusal("invalid-value", "an address is not host:port");
  host = text.substr(0, colon);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  const char* const allowed = bracketed ? "0123456789abcdefABCDEF:." :
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-";
  const std::string digits = text.substr(colon + 1);
  const bool plain = digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string::npos;
  port = plain ? std::atoi(digits.c_str()) : 0;
  if (host.size() > 253 || host.find_first_not_of(allowed) != std::string::npos || port < 1 || port > 65535)
    throw Refusal("invalid-value", "an address is not host:port");
}

TlsStream::TlsStream(const std::string& host, int port, const TlsOptions& options)
    : context_(SSL_CTX_new(TLS_client_method())) {
  if (!context_ || SSL_CTX_set_min_proto_version(context_.get(), TLS1_2_VERSION) != 1) throw std::bad_alloc();
  identify(context_.get(), options);
  tls_.reset(SSL_new(context_.get()));
  SSL* tls = tls_.get();
  static const unsigned char http2[] = {2, 'h', '2'};
  if (tls == nullptr || (options.http2 && SSL_set_alpn_protos(tls, http2, sizeof http2) != 0)) throw std::bad_alloc();
  unsigned char address[16];
  const bool numeric = inet_pton(AF_INET, host.c_str(), address) == 1 || inet_pton(AF_INET6, host.c_str(), address) == 1;
  const bool named = numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls), host.c_str()) == 1
                             : SSL_set1_host(tls, host.c_str()) == 1 && SSL_set_tlsext_host_name(tls, host.c_str()) == 1;
  socket_ = connected(host, port);
  try {
    if (!named || SSL_set_fd(tls, socket_) != 1) throw std::bad_alloc();
    if (SSL_connect(tls) != 1) {
      if (!options.anyone && SSL_get_verify_result(tls) != X509_V_OK)
        invalid("the server's certificate is not accepted");
      away("the server does not speak TLS");
    }
  } catch (...) {
    close(socket_);
    throw;
  }
}

TlsStream::~TlsStream() {
  tls_.reset();
  close(socket_);
}

void TlsStream::send(std::string_view data) {
  for (std::size_t at = 0; at < data.size();) {
    std::size_t done = 0;
    if (SSL_write_ex(tls_.get(), data.data() + at, data.size() - at, &done) != 1) away("the connection broke");
    at += done;
  }
}

bool TlsStream::receive(Bytes& buffer) {
  char piece[1 << 14];
  std::size_t got = 0;
  if (SSL_read_ex(tls_.get(), piece, sizeof piece, &got) != 1) {
    if (SSL_get_error(tls_.get(), 0) == SSL_ERROR_ZERO_RETURN) return false;
    away("the connection broke");
  }
  buffer.append(piece, got);
  return true;
}

std::vector<Bytes> TlsStream::shown() const {
  std::vector<Bytes> found;
  const STACK_OF(X509)* chain = SSL_get_peer_cert_chain(tls_.get());
  for (int i = 0; chain != nullptr && i < sk_X509_num(chain) && found.size() < kMostCertificates; ++i) {
    unsigned char* bytes = nullptr;
    const int size = i2d_X509(sk_X509_value(chain, i), &bytes);
    if (size > 0 && static_cast<std::size_t>(size) <= kLongestCertificate)
      found.emplace_back(reinterpret_cast<char*>(bytes), static_cast<std::size_t>(size));
    OPENSSL_free(bytes);
  }
  return found;
}

bool TlsStream::speaks_http2() const {
  const unsigned char* name = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(tls_.get(), &name, &size);
  return size == 2 && name[0] == 'h' && name[1] == '2';
}

}  // namespace fedslm
