#include "adapters.h"
#include "enroll.h"
#include "http2.h"
#include "pki.h"
#include "vectors.h"

namespace fedslm {
namespace {

void enrolment(Check& check, const Json& said) {
  const Token token(said.at("token").string());
  check.same(token.address, said.at("address").string(), "token's address");
  check.same(token.fingerprint, said.at("fingerprint").string(), "token's fingerprint");
  check.same(token.secret, said.at("secret").string(), "token's secret");
  check.same(token.name, said.at("name").string(), "token's name");
  check.same(token.secret_digest(), said.at("secret_digest").string(), "digest of a token's secret");
  for (const Json& one : said.at("no_tokens").list()) {
    bool refused = false;
    try {
      Token none(one.string());
    } catch (const Refusal&) {
      refused = true;
    }
    check.holds(refused, "refusal of what is no token");
  }
  const std::string& csr = said.at("csr").string();
  check.same(enroll_request(token.secret, csr), unhex(said.at("enroll_request").string()), "enroll request");
  check.same(renew_request(csr), unhex(said.at("renew_request").string()), "renew request");
  check.same(renew_response(unhex(said.at("renew_response").string())), said.at("renewed").string(), "renew response");
  const Enrolled found = enroll_response(unhex(said.at("enroll_response").string()));
  const Json& answer = said.at("answer");
  for (const auto& [name, value] :
       {std::pair{"certificate", found.certificate}, std::pair{"ca", found.ca}, std::pair{"name", found.name},
        std::pair{"role", found.role}, std::pair{"control_address", found.control},
        std::pair{"fleet_address", found.fleet}, std::pair{"adapter_key", found.adapter_key},
        std::pair{"ledger_key", found.ledger_key}, std::pair{"base_digest", found.base_digest}})
    check.same(value, answer.at(name).string(), std::string("answer's ") + name);
  check.holds(found.client_index && *found.client_index == answer.at("client_index").whole(), "answer's client_index");
}

void adapters(Check& check, const Json& said) {
  const std::string& trusted = said.at("public_key").string();
  const auto [order_text, order_signature] = order_response(unhex(said.at("order_response").string()));
  const Order order = read_order(order_text, order_signature, trusted);
  const auto [text, signature] = manifest_response(unhex(said.at("manifest_response").string()));
  const AdapterManifest manifest = read_manifest(text, signature, trusted);
  check.same(order.hash, said.at("order_hash").string(), "order's hash");
  check.holds(order.number == said.at("order_number").whole(), "order's number");
  check.same(order.digest, manifest.digest, "order's adapter");
  check.same(manifest.digest, said.at("digest").string(), "manifest's digest");
  check.same(manifest.verdict, said.at("verdict").string(), "manifest's verdict");
  check.same(manifest.base_digest, said.at("base_digest").string(), "manifest's base");
  require_weights(unhex(said.at("weights").string()));
  check.same(sha256(unhex(said.at("weights").string())), manifest.files.at(1).sha256, "digest of the weights");
  for (const Json& one : said.at("no_weights").list()) {
    bool refused = false;
    try {
      require_weights(unhex(one.string()));
    } catch (const Refusal&) {
      refused = true;
    }
    check.holds(refused, "refusal of what are no weights");
  }
  bool refused = false;
  try {
    read_manifest(order_text, order_signature, trusted);
  } catch (const Refusal&) {
    refused = true;
  }
  check.holds(refused, "refusal of an order in place of a manifest");
}

}  // namespace

void check_control(Check& check, const Json& all) {
  enrolment(check, all.at("enrolment"));
  adapters(check, all.at("adapters"));
  for (const Json& one : all.at("renewal").list()) {
    const CertificateTimes times{one.at("not_before").whole(), one.at("not_after").whole()};
    check.holds(times.renewal_due(one.at("now").whole()) == one.at("due").boolean(), "time of renewal");
  }
  for (const Json& one : all.at("http2_fields").list()) {
    const Fields found = decode_fields(unhex(one.at("block").string()));
    const Json& fields = one.at("fields");
    check.holds(found.size() == fields.members.size(), "count of header fields");
    for (const auto& [name, value] : found) check.same(value, fields.at(name).string(), "header field");
  }
}

}  // namespace fedslm
