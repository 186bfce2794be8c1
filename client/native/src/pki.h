// The device's key, its request for a certificate, and what a certificate of the fleet must say.
#pragma once

#include <ctime>
#include <string>

#include "common.h"

namespace fedslm {

Bytes new_key();                                                  // ECDSA P-384, PKCS 8 in PEM
Bytes certificate_request(const Bytes& key, const std::string& name);  // PEM, signed by the key
std::string fingerprint(const Bytes& certificate_pem);            // SHA-256 of the DER form
Bytes pem_of_certificate(const Bytes& der);

struct CertificateTimes {
  std::time_t not_before = 0, not_after = 0;
  // Less than a third of its time, counted from its issue, is left.
  bool renewal_due(std::time_t now) const;
};

CertificateTimes certificate_times(const Bytes& certificate_pem);
// Refuses a certificate that this authority did not issue now for calling, or that is about another
// name, role or key.
CertificateTimes verify_certificate(const Bytes& certificate_pem, const Bytes& ca_pem, const std::string& name,
                                    const std::string& role, const Bytes& key);

}  // namespace fedslm
