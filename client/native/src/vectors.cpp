#include "vectors.h"

#include "adapters.h"
#include "client.h"
#include "enroll.h"
#include "fleet.h"
#include "http.h"
#include "http2.h"
#include "json.h"
#include "secvectors.h"

namespace fedslm {
namespace {

Tree tree_of(const Json& said) {
  Tree tree{said.at("root").string(), {}};
  for (const Json& one : said.at("objects").list()) {
    Bytes bytes = unhex(one.string());
    tree.objects.emplace_back(sha256(bytes), std::move(bytes));
  }
  return collect(tree.root, parse_object(tree.at(tree.root)).kind,
                 [&tree](const std::string& id) { return tree.at(id); });
}

void same_tree(Check& check, const Tree& found, const Json& said, const std::string& what) {
  check.same(found.root, said.at("root").string(), what + " root");
  check.holds(found.objects.size() == said.at("objects").list().size(), what + " objects");
  for (const Json& one : said.at("objects").list()) {
    const Bytes bytes = unhex(one.string());
    check.same(found.at(sha256(bytes)), bytes, what + " object");
  }
}

void objects(Check& check, const Json& all) {
  for (const Json& one : all.at("objects").list()) {
    std::vector<std::string> children;
    for (const Json& child : one.at("children").list()) children.push_back(child.string());
    const Bytes bytes = build_object(one.at("kind").string(), children, unhex(one.at("body").string()));
    check.same(bytes, unhex(one.at("bytes").string()), "object");
    check.same(sha256(bytes), one.at("id").string(), "object id");
    const Bytes body(parse_object(bytes).body);
    check.same(body, unhex(one.at("body").string()), "object body");
  }
  for (const Json& one : all.at("values").list()) {
    const std::string& type = one.at("type").string();
    const Json& value = one.at("value");
    Value found;
    if (type == "bool") found = value.boolean();
    if (type == "int") found = value.whole();
    if (type == "float") found = value.real();
    if (type == "string") found = value.string();
    if (type == "bytes") found = Blob{unhex(value.string())};
    if (found.index() == 0) continue;  // of a type that no header has
    check.same(write_item(one.at("key").string(), found), unhex(one.at("body").string()), "value " + type);
  }
  for (const Json& one : all.at("npy").list()) {
    if (one.at("dtype").string() != "float32") continue;
    const Floats data = one.at("data").floats();
    const Bytes file = unhex(one.at("bytes").string());
    check.same(write_npy(data.data(), data.size()), file, "npy");
    check.holds(read_npy(file, data.size()) == data, "npy read");
  }
}

void messages(Check& check, const Json& all) {
  const Json& contents = all.at("contents");
  const Tree asked = tree_of(contents.at("instruction"));
  const Content instruction = decode_content(asked, asked.root);
  const std::string digest = text_of(instruction.header, "config-digest");
  check.holds(whole_of(instruction.header, "server-round") == 3 && !flag_of(instruction.header, "empty") &&
                  instruction.vector == Floats{0.0f, 0.5f, -0.25f, 1.0f},
              "instruction");
  const Tree update = encode_update(3, digest, "noised", {0.125f, -0.5f, 3.0f, 0.0f});
  same_tree(check, update, contents.at("update"), "update");
  same_tree(check, encode_introduction(5), contents.at("introduction"), "introduction");
  same_tree(check, encode_failure("policy-refused"), contents.at("failure"), "failure");

  const Json& said = all.at("question");
  const std::uint64_t node = std::stoull(said.at("node_id").string());
  const auto question = response::pull_messages(unhex(said.at("pull_messages_response").string()));
  check.holds(question.has_value(), "question");
  require_question(*question, node);
  const Tree tree = tree_of(said);
  check.same(content_of(*question, tree), contents.at("instruction").at("root").string(), "question content");
  const Json& answer = all.at("answer");
  Metadata head = answer_head(*question, node, answer.at("now").real());
  const Tree answered = answer_tree(head, update);
  same_tree(check, answered, answer, "answer");
  check.same(request::push_messages(node, head, answered, answer.at("seconds").real()),
             unhex(answer.at("push_messages_request").string()), "push-messages");
}

void calls(Check& check, const Json& all) {
  const Json& signature = all.at("signature");
  const std::string& pem = signature.at("public_key").string();
  const std::uint64_t node = std::stoull(all.at("question").at("node_id").string());
  const std::uint64_t run = std::stoull(all.at("question").at("run_id").string());
  const std::string id = sha256("");
  const std::vector<std::pair<std::string, Bytes>> requests = {
      {"activate-node", request::activate(pem, 60)},
      {"deactivate-node", request::deactivate(node)},
      {"send-node-heartbeat", request::heartbeat(node, 60)},
      {"pull-messages", request::pull_messages(node)},
      {"get-run", request::get_run(node, run)},
      {"pull-object", request::pull_object(node, run, id)},
      {"confirm-message-received", request::confirm(node, run, id)},
      {"push-object", request::push_object(node, run, id, "\x01\x02", "s-1")}};
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const Json& said = all.at("requests").list().at(i);
    check.same("/v1/fleet/" + requests[i].first, said.at("path").string(), "path");
    check.same(requests[i].second, unhex(said.at("body").string()), requests[i].first);
  }
  const Json& responses = all.at("responses");
  const auto body = [&responses](const char* name) { return unhex(responses.at(name).string()); };
  check.holds(response::activate(body("activate-node")) == node, "activate-node");
  check.holds(response::flag(body("send-node-heartbeat")) && response::flag(body("push-object")), "flags");
  check.holds(!response::pull_messages(body("pull-messages")), "pull-messages");
  check.holds(response::pull_object(body("pull-object")) == Bytes("\x01\x02"), "pull-object");
  const Upload upload = response::push_messages(body("push-messages"));
  check.holds(upload.session == "s-1" && upload.wanted.size() == 2 && upload.wanted[0] == id, "push-messages");
  const Run found = response::get_run(body("get-run"));
  check.holds(found.run_id == run && found.config.at("plan") == "{\"schema\":1}", "get-run");
  const std::string& time = signature.at("flwr-timestamp").string();
  check.same(base64(pem), signature.at("flwr-public-key").string(), "public key");
  check.same(unbase64(signature.at("flwr-public-key").string()), pem, "base64");
  check.same(timestamp_of(1790000000.25), time, "timestamp");
  check.holds(verify_signature(pem, time, unbase64(signature.at("flwr-signature").string())), "signature");
  check.holds(!verify_signature(pem, time + "0", unbase64(signature.at("flwr-signature").string())), "forgery");
}

void numbers(Check& check, const Json& all) {
  for (const Json& one : all.at("canonical").list()) {
    const std::string& text = one.at("text").string();
    const Json value = parse_json(text);
    check.same(canonical(value), text, "canonical");
    check.same(sha256(text), one.at("sha256").string(), "digest");
    check.same(sha256(canonical(value, "performance")), one.at("without_performance").string(), "config digest");
  }
  const Json& noise = all.at("noise");
  const std::string material = unhex(noise.at("key_material").string());
  check.same(NoiseSource::key_material(noise.at("seed").whole(), "example-noise", 3, 2), material, "key material");
  const auto source = [&material] { return NoiseSource::seeded(material); };
  const auto& words = noise.at("words").list();
  const auto drawn = source().words(words.size());
  for (std::size_t i = 0; i < words.size(); ++i)
    check.holds(drawn[i] == std::stoull(words[i].string(), nullptr, 16), "word");
  auto twice = source();
  twice.words(1);
  check.holds(twice.words(1)[0] == std::stoull(noise.at("second_call").string(), nullptr, 16), "second call");
  const auto& uniform = noise.at("uniform").list();
  for (std::size_t i = 0; i < uniform.size(); ++i)
    check.holds(source().uniform(uniform.size())[i] == uniform[i].real(), "uniform");
  const auto& normal = noise.at("normal").list();
  for (std::size_t i = 0; i < normal.size(); ++i)
    check.near(source().normal(normal.size())[i], normal[i].real(), noise.at("tolerance").real(), "normal");
  const Json& sample = noise.at("poisson_subsample");
  const auto taken = source().poisson_subsample(static_cast<std::size_t>(sample.at("population").whole()),
                                                sample.at("probability").real());
  check.holds(taken.size() == sample.at("taken").list().size(), "sample");
  for (std::size_t i = 0; i < taken.size(); ++i)
    check.holds(static_cast<std::int64_t>(taken[i]) == sample.at("taken").items[i].whole(), "sample");
  for (const Json& one : all.at("clip").list()) {
    const Floats vector = one.at("vector").floats();
    check.near(clip_factor(norm_of(vector), one.at("bound").real()), one.at("factor").real(), 1e-12, "factor");
    const Floats found = clipped(vector, one.at("bound").real());
    check.same(hex(bytes_of(found.data(), found.size())), one.at("clipped").string(), "clipped");
  }
  for (const Json& one : all.at("epsilon").list()) {
    std::vector<double> renyi = renyi_of(one.at("sampling_probability").real(), one.at("noise_multiplier").real());
    for (double& r : renyi) r *= one.at("releases").real();
    check.near(epsilon_of(renyi, one.at("delta").real()), one.at("epsilon").real(), 1e-9, "epsilon");
  }
}

void steps(Check& check, const Json& said) {
  NoiseSource source = NoiseSource::seeded(NoiseSource::key_material(said.at("seed").whole(), "example-noise", 3, 2));
  const auto& gradients = said.at("gradients").list();
  const Floats start = said.at("start").floats(), expected = said.at("after").floats();
  // Which step asks is told by how far the factors are: the second sees others than the first.
  const GradientOf gradient = [&](std::size_t example, const Floats& moving) {
    return gradients.at(moving == start ? 0 : 1).list().at(example).floats();
  };
  const Floats found = private_steps(
      start, static_cast<std::size_t>(said.at("examples").whole()), static_cast<std::int64_t>(gradients.size()),
      said.at("batch_size").whole(), said.at("learning_rate").real(), said.at("max_grad_norm").real(),
      said.at("noise_multiplier").real(), said.at("sampling_probability").real(), source, gradient);
  check.holds(found.size() == expected.size(), "steps");
  for (std::size_t i = 0; i < found.size(); ++i)
    check.near(found[i], expected[i], said.at("tolerance").real(), "step of DP-SGD");
}

}  // namespace

int check_vectors(const std::string& path) {
  const Json all = parse_json(read_file(path, std::size_t{16} << 20));
  require(all.at("schema").whole() == 1, "vectors of another schema");
  Check check;
  objects(check, all);
  messages(check, all);
  calls(check, all);
  numbers(check, all);
  steps(check, all.at("dp_sgd"));
  check_control(check, all);
  check_secure(check, all);
  return check.count;
}

int check_hostile(const std::string& path) {
  const Json all = parse_json(read_file(path, std::size_t{16} << 20));
  int refused = 0;
  const auto attempt = [&refused](const auto& read, const Bytes& bytes) {
    try {
      read(bytes);
    } catch (const Refusal&) {
      ++refused;
    }
  };
  const auto attack = [&attempt](const Bytes& bytes, const auto& read) {
    for (std::size_t size = 0; size < bytes.size(); ++size) attempt(read, bytes.substr(0, size));
    for (std::size_t at = 0; at < bytes.size(); ++at)
      for (int bit = 0; bit < 8; ++bit) {
        Bytes other = bytes;
        other[at] = static_cast<char>(other[at] ^ (1 << bit));
        attempt(read, other);
      }
  };
  const Json& responses = all.at("responses");
  attack(unhex(responses.at("get-run").string()), [](const Bytes& bytes) { response::get_run(bytes); });
  attack(unhex(responses.at("pull-object").string()), [](const Bytes& bytes) { response::pull_object(bytes); });
  attack(unhex(responses.at("push-messages").string()), [](const Bytes& bytes) { response::push_messages(bytes); });
  attack(unhex(all.at("question").at("pull_messages_response").string()), [](const Bytes& bytes) {
    if (const auto head = response::pull_messages(bytes)) require_question(*head, head->destination);
  });
  attack(all.at("canonical").list().at(0).at("text").string(),
         [](const Bytes& bytes) { canonical(parse_json(bytes)); });
  attack_secure(attack, all);
  // Objects are named anew, so that what is inside them is read.
  const Tree tree = tree_of(all.at("contents").at("instruction"));
  for (std::size_t i = 0; i < tree.objects.size(); ++i)
    attack(tree.objects[i].second, [&tree, i](const Bytes& bytes) {
      Tree other = tree;
      other.objects[i].second = bytes;
      decode_content(other, other.root);
    });
  attack(unhex(all.at("enrolment").at("enroll_response").string()), [](const Bytes& bytes) { enroll_response(bytes); });
  const Json& adapters = all.at("adapters");
  attack(unhex(adapters.at("weights").string()), [](const Bytes& bytes) { require_weights(bytes); });
  attack(unhex(adapters.at("order_response").string()), [&adapters](const Bytes& bytes) {
    const auto [text, signature] = order_response(bytes);
    read_order(text, signature, adapters.at("public_key").string());
  });
  for (const Json& one : all.at("http2_fields").list())
    attack(unhex(one.at("block").string()), [](const Bytes& bytes) { decode_fields(bytes); });
  attack(all.at("enrolment").at("token").string(), [](const Bytes& bytes) { Token token(bytes); });
  return refused;
}

}  // namespace fedslm
