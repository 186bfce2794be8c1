#include "adapters.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "config.h"
#include "control.h"
#include "enroll.h"
#include "files.h"
#include "json.h"
#include "proto.h"

namespace fedslm {
namespace {

constexpr int kAttempts = 5;
constexpr char kWeights[] = "adapter_model.safetensors", kPeft[] = "adapter_config.json";

[[noreturn]] void corrupt(const std::string& why) { throw Refusal("adapter-corrupt", why); }
[[noreturn]] void untrusted(const std::string& why) { throw Refusal("adapter-untrusted", why); }

// What a device remembers against downgrades: an order must be newer than the last one, or be it.
struct Memory {
  std::string current, previous, order_hash;
  std::int64_t order = 0;

  static Memory load(const std::string& path) {
    Memory found;
    if (!exists(path)) return found;
    try {
      const Json said = parse_json(read_private(path, 1 << 12));
      found.current = said.at("current").string();
      found.previous = said.at("previous").string();
      found.order = said.at("order").whole();
      found.order_hash = said.at("order_hash").string();
    } catch (const Refusal&) {
      corrupt("the memory of adapters is damaged: without it old ones cannot be told from new, remove the folder adapters");
    }
    return found;
  }
  void save(const std::string& path) const {
    replace_private(path, "{\"current\":" + fedslm::quoted(current) + ",\"order\":" + std::to_string(order) + ",\"order_hash\":" +
                              fedslm::quoted(order_hash) + ",\"previous\":" + fedslm::quoted(previous) + "}\n");
  }
  void check(const AdapterManifest& manifest, const Order& wanted) const {
    if (wanted.digest != manifest.digest || wanted.sequence != manifest.sequence) untrusted("the order is about another adapter");
    if (!(wanted.number > order || (wanted.number == order && wanted.hash == order_hash)))
      untrusted("order " + std::to_string(wanted.number) + " is not newer than " + std::to_string(order));
  }
  void take(const AdapterManifest& manifest, const Order& wanted) {
    if (current != manifest.digest) previous = current;
    current = manifest.digest;
    order = wanted.number;
    order_hash = wanted.hash;
  }
};

class Download {
 public:
  explicit Download(const std::string& path)
      : descriptor_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600)) {
    struct stat status {};
    if (descriptor_ < 0 || fstat(descriptor_, &status) != 0) throw Refusal("fleet", "cannot write " + path);
    have = static_cast<std::uint64_t>(status.st_size);
  }
  ~Download() { close(descriptor_); }
  Download(const Download&) = delete;
  Download& operator=(const Download&) = delete;

  // The next part of a file of a size: what does not fit is refused.
  void add(std::string_view message, std::uint64_t size) {
    std::uint64_t offset = 0, total = 0;
    std::string_view data;
    ProtoReader reader(message);
    while (const auto field = reader.next()) {
      if (field->number == 1) offset = field->whole();
      if (field->number == 2) data = field->bytes();
      if (field->number == 3) total = field->whole();
    }
    require(offset == have && total == size && !data.empty() && data.size() <= size - have, "a part of a download does not fit");
    for (std::size_t at = 0; at < data.size();) {
      const ssize_t done = write(descriptor_, data.data() + at, data.size() - at);
      if (done <= 0) throw Refusal("out-of-disk", "a download cannot be written");
      at += static_cast<std::size_t>(done);
      have += static_cast<std::uint64_t>(done);
    }
  }
  void sync() const {
    if (fsync(descriptor_) != 0) throw Refusal("out-of-disk", "a download cannot be written");
  }
  std::uint64_t have = 0;

 private:
  const int descriptor_;
};

void download(const Control& control, const AdapterFile& file, const std::string& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) == 0 && static_cast<std::uint64_t>(status.st_size) > file.size) remove_file(path);
  Download target(path);
  for (int failures = 0; target.have < file.size;) {
    const std::uint64_t before = target.have;
    const Bytes request = ProtoWriter().text(1, file.sha256).number(2, target.have).done();
    try {
      control.stream("Registry/Download", request, [&](std::string_view part) { target.add(part, file.size); });
    } catch (const Refusal& refusal) {
      if (refusal.code != "server-unreachable") throw;
    }
    failures = target.have > before ? 0 : failures + 1;
    if (failures >= kAttempts) throw Refusal("server-unreachable", "a download ends before the file does");
    if (failures > 0) std::this_thread::sleep_for(std::chrono::seconds(failures));
  }
  target.sync();
  if (hash_file(path).second == file.sha256) return;
  remove_file(path);
  corrupt("a download has another content than its digest says");
}

// Everything that a loader would rely on.
void verify(const AdapterManifest& manifest, const std::string& folder) {
  for (const AdapterFile& file : manifest.files) {
    const auto [size, digest] = hash_file(folder + "/" + file.name);
    if (size != file.size || digest != file.sha256) corrupt(file.name + " is not the file that the manifest names");
  }
  require_weights(read_file(folder + "/" + kWeights, std::size_t{1} << 30));
  try {
    const Json peft = parse_json(read_file(folder + "/" + kPeft, 1 << 24));
    const Json* dora = peft.find("use_dora");
    if (peft.at("peft_type").string() != "LORA" || peft.at("r").whole() < 1 || (dora != nullptr && dora->boolean()))
      throw Refusal("adapter-incompatible", "the adapter is no plain LoRA");
  } catch (const Refusal& refusal) {
    if (refusal.code == "schema-mismatch") throw Refusal("adapter-incompatible", "the adapter is no plain LoRA");
    throw;
  }
}

bool whole(const AdapterManifest& manifest, const std::string& folder) {
  try {
    verify(manifest, folder);
    return true;
  } catch (const Refusal&) {
    return false;
  }
}

void remove_tree(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void prune(const std::string& folder, const std::set<std::string>& kept) {
  std::error_code failed;
  for (const auto& one : std::filesystem::directory_iterator(folder, failed))
    if (!kept.count(one.path().filename().string())) remove_tree(one.path().string());
}

std::string base_of(const Config& config) {
  const Bytes text = read_file(config.step + "/step.json", std::size_t{1} << 22);
  if (sha256(text) != config.step_digest) throw Refusal("base-model-mismatch", "step.json is not the pinned file");
  return parse_json(text).at("base_digest").string();
}

std::string signature_text(const Signature& signature) {
  return "{\"algorithm\":\"ed25519\",\"domain\":" + fedslm::quoted(signature.domain) + ",\"public_key\":" + fedslm::quoted(signature.public_key) +
         ",\"sha256\":" + fedslm::quoted(signature.sha256) + ",\"signature\":" + fedslm::quoted(signature.signature) + "}\n";
}

}  // namespace

AdapterRules AdapterRules::take(Lines& lines) {
  AdapterRules found;
  if (lines.has("adapter_verdicts")) found.verdicts = lines.list("adapter_verdicts");
  for (const std::string& verdict : found.verdicts)
    if (verdict != "consistent" && verdict != "inconclusive") throw Refusal("config", "adapter_verdicts names another verdict");
  if (lines.has("adapter_unaudited")) found.unaudited = lines.yes("adapter_unaudited");
  if (lines.has("adapter_audit_key")) found.audit_key = lines.digest("adapter_audit_key");
  if (lines.has("adapter_max_megabytes")) found.max_megabytes = lines.whole("adapter_max_megabytes", 1);
  if (found.max_megabytes > 1000000) throw Refusal("config", "adapter_max_megabytes is out of range");
  return found;
}

Fetched fetch_adapter(const Config& config) {
  const Device device = Device::load(config.folder);
  if (device.adapter_key.empty()) throw Refusal("adapter-untrusted", "this device knows no key that signs adapters");
  const std::string home = config.folder + "/adapters", versions = home + "/versions", incoming = home + "/incoming";
  for (const std::string& folder : {home, versions, incoming}) private_folder(folder);
  const Held held(home + "/lock");
  const Control control(device.control, device.identity());

  const auto [order_text, order_signature] = order_response(control.call("Registry/GetOrder", ""));
  if (order_text.empty()) return {};
  const Order wanted = read_order(order_text, order_signature, device.adapter_key);
  const auto [text, signature] = manifest_response(control.call("Registry/GetManifest", ProtoWriter().text(1, wanted.digest).done()));
  const AdapterManifest manifest = read_manifest(text, signature, device.adapter_key);
  require_taken(manifest, config.adapters, base_of(config));
  Memory memory = Memory::load(home + "/state.json");
  memory.check(manifest, wanted);

  const std::string place = versions + "/" + manifest.digest;
  Fetched found{manifest.digest, place, memory.current != manifest.digest};
  if (!whole(manifest, place)) {
    const std::string staged = versions + "/." + manifest.digest;
    remove_tree(staged);
    private_folder(staged);
    for (const AdapterFile& file : manifest.files) download(control, file, incoming + "/" + file.sha256);
    for (const AdapterFile& file : manifest.files)
      std::filesystem::copy_file(incoming + "/" + file.sha256, staged + "/" + file.name);
    replace_private(staged + "/manifest.json", text);
    replace_private(staged + "/signature.json", signature_text(signature));
    try {
      verify(manifest, staged);
    } catch (const Refusal&) {
      remove_tree(staged);
      prune(incoming, {});
      throw;
    }
    remove_tree(place);
    std::filesystem::rename(staged, place);
    sync_folder(versions);
    found.changed = true;
  }
  memory.take(manifest, wanted);
  memory.save(home + "/state.json");
  prune(versions, {memory.current, memory.previous});
  prune(incoming, {});
  return found;
}

}  // namespace fedslm
