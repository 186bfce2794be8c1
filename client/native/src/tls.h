// TLS to one server: trusted by the fleet's own authority alone, or, once, by nobody.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <memory>
#include <string>
#include <vector>

#include "common.h"

namespace fedslm {

template <typename T, void (*free_of)(T*)>
struct Freed {
  void operator()(T* p) const { free_of(p); }
};
struct FreeBio {
  void operator()(BIO* p) const { BIO_free_all(p); }
};
using KeyPointer = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509, X509_free>>;
using MemoryBio = std::unique_ptr<BIO, FreeBio>;

MemoryBio memory_of(std::string_view data);
Bytes text_of_memory(const MemoryBio& memory);
// The first private key of a PEM text; refuses anything but an elliptic curve.
KeyPointer private_key(std::string_view pem);

// host:port, an IPv6 host in brackets; refuses anything else.
struct Address {
  explicit Address(const std::string& text);
  std::string host;
  int port = 0;
};

struct TlsOptions {
  std::string ca;                // PEM; the only authority that is trusted
  bool anyone = false;           // verifies nothing: for reading what a server shows, and for nothing else
  std::string certificate, key;  // PEM; of the caller, where the server asks
  bool http2 = false;
};

class TlsStream {
 public:
  // Raises server-unreachable or certificate-invalid.
  TlsStream(const std::string& host, int port, const TlsOptions& options);
  ~TlsStream();
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  void send(std::string_view data);
  bool receive(Bytes& buffer);       // appends what came; false at the end of the stream
  std::vector<Bytes> shown() const;  // the certificates that the server showed, DER
  bool speaks_http2() const;

 private:
  int socket_ = -1;
  std::unique_ptr<SSL_CTX, Freed<SSL_CTX, SSL_CTX_free>> context_;
  std::unique_ptr<SSL, Freed<SSL, SSL_free>> tls_;
};

}  // namespace fedslm
