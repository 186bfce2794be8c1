// The adapter that the server put in use: decided, downloaded, verified, kept. Nothing is fetched before
// the signed order and manifest pass the owner's rules, and nothing is in use that was not verified.
#pragma once

#include <string>
#include <vector>

#include "common.h"
#include "lines.h"

namespace fedslm {

struct Config;

// Keys `adapter_...` of client.conf; the server's signature and the base are always checked.
struct AdapterRules {
  static AdapterRules take(Lines& lines);
  std::vector<std::string> verdicts = {"consistent", "inconclusive"};
  bool unaudited = false;
  std::string audit_key;  // whose signature an audit must have; "" for any and none
  std::int64_t max_megabytes = 1000;
};

struct Signature {
  std::string domain, sha256, public_key, signature;
};

struct Order {
  std::int64_t number = 0, sequence = 0;
  std::string digest, hash;
};

struct AdapterFile {
  std::string name, sha256;
  std::uint64_t size = 0;
};

struct AdapterManifest {
  std::string digest, base_digest, verdict, signed_by;  // verdict: "" without an audit
  std::int64_t sequence = 0, order = 0;
  bool withheld = false;
  std::vector<AdapterFile> files;
};

// Documents that the trusted key (hexadecimal) signed; the signature is checked before the text.
Order read_order(const Bytes& text, const Signature& signature, const std::string& trusted);
AdapterManifest read_manifest(const Bytes& text, const Signature& signature, const std::string& trusted);
// Messages of the control service: the signed text and its signature.
std::pair<Bytes, Signature> order_response(const Bytes& message);
std::pair<Bytes, Signature> manifest_response(const Bytes& message);
// Refuses a version that the owner would not take, or of another base.
void require_taken(const AdapterManifest& manifest, const AdapterRules& rules, const std::string& base_digest);
// Refuses weights that are no safetensors of finite float32 or float16.
void require_weights(const Bytes& file);

struct Fetched {
  std::string digest;  // "" before the server's first order
  std::string folder;
  bool changed = false;
};

// Takes the server's newest order; after a failure what was in use is still in use.
Fetched fetch_adapter(const Config& config);

}  // namespace fedslm
