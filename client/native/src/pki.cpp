#include "pki.h"

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include "tls.h"

namespace fedslm {
namespace {

// Certificates are dated back, as the clocks of small devices are often behind (docs/deploy/enrolment.md).
constexpr std::time_t kBackdated = 30 * 86400;

using Request = std::unique_ptr<X509_REQ, Freed<X509_REQ, X509_REQ_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Freed<X509_STORE_CTX, X509_STORE_CTX_free>>;
using Store = std::unique_ptr<X509_STORE, Freed<X509_STORE, X509_STORE_free>>;

[[noreturn]] void invalid(const std::string& why) { throw Refusal("certificate-invalid", why); }

Certificate read(const Bytes& pem) {
  if (pem.size() > 65536) invalid("a certificate is too long");
  const MemoryBio in = memory_of(pem);
  Certificate found(PEM_read_bio_X509(in.get(), nullptr, nullptr, nullptr));
  if (!found) invalid("a certificate cannot be read");
  return found;
}

std::time_t time_of(const ASN1_TIME* time) {
  std::tm parts{};
  if (ASN1_TIME_to_tm(time, &parts) != 1) invalid("a certificate has no time");
  return timegm(&parts);
}

std::string subject(const X509* certificate, int kind) {
  const X509_NAME* name = X509_get_subject_name(certificate);
  const int at = X509_NAME_get_index_by_NID(name, kind, -1);
  if (at < 0 || X509_NAME_get_index_by_NID(name, kind, at) >= 0) return "";
  const ASN1_STRING* text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)), static_cast<std::size_t>(ASN1_STRING_length(text))};
}

CertificateTimes times_of(const X509* certificate) {
  return {time_of(X509_get0_notBefore(certificate)), time_of(X509_get0_notAfter(certificate))};
}

// The whole of what it may be used for: calling a server, and nothing else.
bool only_for_calling(X509* certificate) {
  return X509_get_ext_by_NID(certificate, NID_ext_key_usage, -1) >= 0 &&
         X509_get_extended_key_usage(certificate) == XKU_SSL_CLIENT &&
         (X509_get_extension_flags(certificate) & EXFLAG_CA) == 0;
}

}  // namespace

Bytes new_key() {
  const KeyPointer key(EVP_EC_gen("P-384"));
  const MemoryBio out(BIO_new(BIO_s_secmem()));
  if (!key || !out || PEM_write_bio_PKCS8PrivateKey(out.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr) != 1)
    invalid("no key can be made");
  return text_of_memory(out);
}

Bytes certificate_request(const Bytes& key_pem, const std::string& name) {
  const KeyPointer key = private_key(key_pem);
  const Request request(X509_REQ_new());
  const MemoryBio out(BIO_new(BIO_s_mem()));
  const auto* text = reinterpret_cast<const unsigned char*>(name.data());
  if (!request || !out ||
      X509_NAME_add_entry_by_NID(X509_REQ_get_subject_name(request.get()), NID_commonName, MBSTRING_UTF8, text,
                                 static_cast<int>(name.size()), -1, 0) != 1 ||
      X509_REQ_set_pubkey(request.get(), key.get()) != 1 || X509_REQ_sign(request.get(), key.get(), EVP_sha384()) <= 0 ||
      PEM_write_bio_X509_REQ(out.get(), request.get()) != 1)
    invalid("no request can be made");
  return text_of_memory(out);
}

std::string fingerprint(const Bytes& pem) {
  const Certificate certificate = read(pem);
  unsigned char* bytes = nullptr;
  const int size = i2d_X509(certificate.get(), &bytes);
  if (size <= 0) invalid("a certificate cannot be read");
  const std::string found = sha256({reinterpret_cast<char*>(bytes), static_cast<std::size_t>(size)});
  OPENSSL_free(bytes);
  return found;
}

Bytes pem_of_certificate(const Bytes& der) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(der.data());
  const Certificate certificate(d2i_X509(nullptr, &bytes, static_cast<long>(der.size())));
  const MemoryBio out(BIO_new(BIO_s_mem()));
  if (!certificate || PEM_write_bio_X509(out.get(), certificate.get()) != 1) invalid("a certificate cannot be read");
  return text_of_memory(out);
}

bool CertificateTimes::renewal_due(std::time_t now) const {
  const std::time_t issued = std::min(not_before + kBackdated, not_after);
  return 3 * (not_after - now) < not_after - issued;
}

CertificateTimes certificate_times(const Bytes& pem) { return times_of(read(pem).get()); }

CertificateTimes verify_certificate(const Bytes& pem, const Bytes& ca_pem, const std::string& name,
                                    const std::string& role, const Bytes& key_pem) {
  const Certificate certificate = read(pem), ca = read(ca_pem);
  const Store store(X509_STORE_new());
  const StoreContext context(X509_STORE_CTX_new());
  if (!store || !context || X509_STORE_add_cert(store.get(), ca.get()) != 1 ||
      X509_STORE_CTX_init(context.get(), store.get(), certificate.get(), nullptr) != 1 ||
      X509_STORE_CTX_set_purpose(context.get(), X509_PURPOSE_SSL_CLIENT) != 1)
    throw std::bad_alloc();
  if (X509_verify_cert(context.get()) != 1) {
    const int why = X509_STORE_CTX_get_error(context.get());
    if (why == X509_V_ERR_CERT_NOT_YET_VALID || why == X509_V_ERR_CERT_HAS_EXPIRED)
      invalid("the certificate is not valid at this device's time: set the clock, or enroll again");
    invalid("the certificate was not issued by this authority for a client");
  }
  const KeyPointer key = private_key(key_pem);
  if (!only_for_calling(certificate.get()) || subject(certificate.get(), NID_commonName) != name ||
      subject(certificate.get(), NID_organizationalUnitName) != role ||
      EVP_PKEY_eq(X509_get0_pubkey(certificate.get()), key.get()) != 1)
    invalid("the server's certificate names another device, role or key than was asked for");
  return times_of(certificate.get());
}

}  // namespace fedslm
