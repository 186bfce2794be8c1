#include "step.h"

#include <cmath>
#include <cstring>
#include <set>

#include "json.h"

namespace fedslm {
namespace {

constexpr std::size_t kMost = std::size_t{1} << 31;
const std::set<std::string> kFiles = {"base.ptd", "step.pte", "tokenizer.json"};

[[noreturn]] void wrong(const std::string& why) { throw Refusal("base-model-mismatch", why); }

std::uint32_t four(const Bytes& data, std::size_t& at) {
  if (data.size() - at < 4) wrong("examples are cut off");
  std::uint32_t value;
  std::memcpy(&value, data.data() + at, 4);
  at += 4;
  return value;
}

}  // namespace

Manifest Manifest::load(const std::string& folder, const std::string& digest) {
  Bytes data = read_file(folder + "/step.json", 1 << 22);
  while (!data.empty() && data.back() == '\n') data.pop_back();
  if (sha256(data) != digest) wrong("step.json is not the step that the owner pinned");
  const Json said = parse_json(data);
  if (said.at("schema").whole() != 1 || said.at("runtime").string() != "executorch")
    wrong("the step is not for ExecuTorch");
  Manifest found;
  std::set<std::string> names;
  for (const Json& file : said.at("files").list()) {
    if (file.list().size() != 3) wrong("step.json is malformed");
    const std::string& name = file.items[0].string();
    if (!names.insert(name).second || (kFiles.count(name) == 0 && name != "chat.json")) wrong("step.json names another file");
    const auto [size, hash] = hash_file(folder + "/" + name);
    if (static_cast<std::int64_t>(size) != file.items[1].whole() || hash != file.items[2].string())
      wrong(name + " is not the file that step.json names");
    if (name == "base.ptd" && size > 0) found.weights = name;
  }
  names.erase("chat.json");  // is there where the tokenizer has a template
  if (names != kFiles) wrong("step.json lacks a file");
  found.trained = said.at("trained").string();
  found.length = said.at("length").whole();
  found.vocabulary = said.at("vocabulary").whole();
  const Json& adapter = said.at("adapter");
  found.rank = adapter.at("r").whole();
  found.alpha = adapter.at("lora_alpha").real();
  const Json& clip = said.at("max_grad_norm");
  found.clip = clip.is_null() ? 0.0 : clip.real();
  if (found.trained != "B" || found.length < 2 || found.length > 1 << 16 || found.vocabulary < 1)
    throw Refusal("unsupported-model", "the step trains other factors than B");
  // Factors, r, lora_alpha, target_modules, fan_in_fan_out: whatever else there may be has a key more.
  if (adapter.members.size() != 5) throw Refusal("unsupported-model", "the step has more than LoRA's two factors");
  std::size_t total = 0;
  for (const Json& one : adapter.at("factors").list()) {
    if (one.list().size() != 3) wrong("step.json is malformed");
    Factor factor{one.items[0].string(), one.items[1].string(), {}, 1};
    for (const Json& side : one.items[2].list()) {
      const std::int64_t size = side.whole();
      if (size < 1 || static_cast<std::uint64_t>(size) > kMost / factor.size) wrong("a factor is too large");
      factor.shape.push_back(size);
      factor.size *= static_cast<std::size_t>(size);
    }
    total += factor.size;
    if (total > kMost || (factor.kind != "A" && factor.kind != "B")) wrong("step.json is malformed");
    found.factors.push_back(factor);
  }
  return found;
}

std::size_t Manifest::size(const std::string& kinds) const {
  std::size_t total = 0;
  for (const Factor& factor : factors)
    if (kinds.find(factor.kind) != std::string::npos) total += factor.size;
  return total;
}

void Manifest::require_terms(const Terms& terms) const {
  const bool fits = length == terms.length && rank == terms.rank && alpha == terms.alpha;
  // A program that clips to less than the round does would bias it; client modes train without a clip.
  const bool clips = clip == 0 || (terms.mode == "example" && clip >= terms.clip);
  if (!fits || !clips) throw Refusal("conflicting-settings", "the step was not exported for this scenario");
}

std::vector<Example> load_examples(const std::string& path, const Manifest& manifest) {
  Bytes data = read_file(path, std::size_t{1} << 30);
  std::size_t at = 8;
  if (data.size() < 12 || data.compare(0, 8, "FSLMTOK1") != 0) wrong("examples is no file of tokens");
  const std::uint32_t count = four(data, at);
  std::vector<Example> found;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t size = four(data, at);
    if (size < 1 || size > static_cast<std::uint64_t>(manifest.length) || data.size() - at < 8ull * size)
      wrong("an example is longer than the step, or cut off");
    Example example{Secret<std::int64_t>(size), Secret<std::int64_t>(size)};
    for (Secret<std::int64_t>* row : {&example.ids, &example.labels})
      for (std::int64_t& token : *row) token = static_cast<std::int32_t>(four(data, at));
    for (std::uint32_t k = 0; k < size; ++k) {
      const std::int64_t id = example.ids[k], label = example.labels[k];
      if (id < 0 || id >= manifest.vocabulary || (label != -100 && label != id))
        wrong("an example has a token that the step does not know");
    }
    found.push_back(std::move(example));
  }
  if (at != data.size()) wrong("examples goes on after its last example");
  OPENSSL_cleanse(data.data(), data.size());
  return found;
}

}  // namespace fedslm
