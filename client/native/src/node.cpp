#include "node.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "adapters.h"
#include "conditions.h"
#include "enroll.h"
#include "fleet.h"
#include "http.h"

namespace fedslm {
namespace {

// SHA-256 of the one bundle that fedslm's runs name (shared/bundle.py).
constexpr char kBundle[] = "37bc4623e5b51f8053bb3f5d98e02dc778a69f31b8e5308c76501e9714713069";
constexpr int kAttempts = 5;
constexpr double kPausedSeconds = 10;
// How long the work took follows the sample that was drawn, which no event pays for.
constexpr double kUntold = 0.0;
// Until the first look at the certificate, and between two; the same for the adapter.
constexpr std::chrono::seconds kFirstLook(60), kLooks(6 * 3600), kFirstFetch(90), kFetches(900);
std::atomic<bool> stopping{false};

class RunOver {};

void note(const std::string& event) {
  std::printf("%s\n", event.c_str());
  std::fflush(stdout);
}

void rest(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!stopping && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

Bytes call(Connection& connection, const std::string& name, const Bytes& body) {
  HttpAnswer answer = connection.post("/v1/fleet/" + name, body);
  if (answer.status == 200) return std::move(answer.body);
  if (answer.code == 2007 || answer.code == 2008) throw RunOver();
  const std::string status = name + " was answered with status " + std::to_string(answer.status);
  static const std::set<int> busy = {408, 425, 429, 500, 502, 503, 504};
  if (busy.count(answer.status)) throw Refusal("server-unreachable", status);
  if (answer.status == 401 || answer.status == 403 || answer.status == 412) throw Refusal("access-denied", status);
  mismatch(status);
}

// Signs of life from a thread of their own, over a connection of their own.
class Heart {
 public:
  Heart(const Config& config, const DeviceKey& key, ServerClock& clock, std::uint64_t node)
      : connection_(config.host, config.port, config.ca, key, clock), thread_([this, &config, node] {
          const auto pause = std::chrono::duration<double>(0.75 * config.heartbeat_seconds);
          std::unique_lock<std::mutex> lock(mutex_);
          while (!changed_.wait_for(lock, pause, [this] { return over_; })) {
            try {
              lost = !response::flag(call(connection_, "send-node-heartbeat",
                                          request::heartbeat(node, config.heartbeat_seconds)));
            } catch (const RunOver&) {
              lost = true;
            } catch (const Refusal& refusal) {
              if (refusal.code == "access-denied") lost = true;
            } catch (const std::exception&) {
              lost = true;
            }
          }
        }) {}
  ~Heart() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      over_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  std::atomic<bool> lost{false};

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool over_ = false;
  Connection connection_;
  std::thread thread_;
};

class Node {
 public:
  explicit Node(Client& client)
      : client_(client),
        config_(client.config()),
        key_(DeviceKey::load(config_.key)),
        connection_(config_.host, config_.port, config_.ca, key_, clock_),
        conditions_(config_.conditions, Machine(), seconds) {}

  void run(long messages) {
    double pause = 0.5;
    while (!stopping && !has_left(config_.folder) && (messages <= 0 || answered_ < messages)) {
      try {
        const std::string reasons = conditions_.reasons();
        if (reasons.empty())
          turn();
        else
          stay_away(reasons);
        pause = 0.5;
      } catch (const Refusal& refusal) {
        note(refusal.code + ": " + refusal.what());
        if (refusal.code == "access-denied") heart_.reset();
        rest(pause);
        pause = std::min(pause * 1.7, 20.0);
      } catch (const RunOver&) {
        note("run-over");
        runs_.clear();
      }
    }
    leave();
  }

 private:
  static double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  void leave() {
    if (!heart_) return;
    heart_.reset();
    try {
      call(connection_, "deactivate-node", request::deactivate(node_));
    } catch (const Refusal&) {
      note("left without a word");
    } catch (const RunOver&) {
      note("left without a word");
    }
  }

  // While the owner's conditions do not hold nobody waits for this device.
  void stay_away(const std::string& reasons) {
    note("paused " + reasons);
    leave();
    while (!stopping && !has_left(config_.folder) && !conditions_.reasons().empty()) rest(std::min(kPausedSeconds, 2 * config_.poll_seconds));
    if (!stopping) note("resumed");
  }

  // Work ends as soon as the owner's conditions do; what was charged stays charged.
  void watch(const Metadata& question) {
    client_.watch([this, expires = question.expires()] {
      if (stopping || expires <= clock_.now()) throw Refusal("server-unreachable", "nobody waits for the answer");
      const std::string reasons = conditions_.reasons();
      if (!reasons.empty()) refuse(reasons);
    });
  }

  void turn() {
    if (heart_ && heart_->lost) heart_.reset();
    if (!heart_) {
      node_ = response::activate(
          call(connection_, "activate-node", request::activate(key_.public_pem(), config_.heartbeat_seconds)));
      heart_ = std::make_unique<Heart>(config_, key_, clock_, node_);
      note("joined");
    }
    const auto question = response::pull_messages(call(connection_, "pull-messages", request::pull_messages(node_)));
    if (!question) {
      look_after_certificate();
      look_after_adapter();
      rest(config_.poll_seconds);
      return;
    }
    require_question(*question, node_);
    if (!seen_.insert(question->message_id).second || question->expires() <= clock_.now()) return;
    Tree content;
    std::string said = "answered";
    try {
      content = work(*question);
    } catch (const Refusal& refusal) {
      if (refusal.code == "server-unreachable" || refusal.code == "access-denied") throw;
      said = std::string(refusal.code) + ": " + refusal.what();
      content = encode_failure(refusal.code);
    } catch (const std::exception&) {
      said = "unexpected";
      content = encode_failure(said);
    }
    deliver(*question, content);
    note(question->type + " " + said);
    if (question->type == "train" && said == "answered") ++answered_;
  }

  void look_after_certificate() {
    if (!config_.renews || std::chrono::steady_clock::now() < next_look_) return;
    next_look_ = std::chrono::steady_clock::now() + kLooks;
    try {
      if (renew(Device::load(config_.folder), true)) note("certificate-renewed");
    } catch (const Refusal& refusal) {
      note("certificate-not-renewed " + refusal.code);
    }
  }

  void look_after_adapter() {
    if (!config_.fetches || std::chrono::steady_clock::now() < next_fetch_) return;
    next_fetch_ = std::chrono::steady_clock::now() + kFetches;
    std::string code;
    try {
      const Fetched found = fetch_adapter(config_);
      if (found.changed) note("adapter-in-use " + found.digest);
    } catch (const Refusal& refusal) {
      code = refusal.code;
    } catch (const std::exception&) {
      code = "unexpected";
    }
    // A server that is away is not worth a word, nor is a reason that was said before.
    if (!code.empty() && code != "server-unreachable" && code != unfetched_) note("adapter-not-fetched " + code);
    unfetched_ = code;
  }

  Tree work(const Metadata& question) {
    auto known = runs_.find(question.run_id);
    if (known == runs_.end()) {
      const Run run = response::get_run(patiently(question, "get-run", request::get_run(node_, question.run_id)));
      require(run.run_id == question.run_id, "the server described another run than was asked for");
      known = runs_.emplace(question.run_id, run).first;
    }
    const Run& run = known->second;
    if (run.bundle != kBundle) refuse("the run was submitted with a bundle that this client does not know");
    const Tree tree = collect(question.message_id, "Message", [&](const std::string& id) {
      const Bytes body = request::pull_object(node_, question.run_id, id);
      for (;;) {
        if (auto object = response::pull_object(patiently(question, "pull-object", body))) return *object;
        if (stopping || question.expires() <= clock_.now()) mismatch("an object of a message never arrived");
        rest(0.2);
      }
    });
    patiently(question, "confirm-message-received", request::confirm(node_, question.run_id, question.message_id));
    const Content content = decode_content(tree, content_of(question, tree));
    const auto text = [&run](const char* name) {
      const auto found = run.config.find(name);
      return found == run.config.end() ? std::string() : found->second;
    };
    watch(question);
    return client_.answer(question.type, content, text("scenario"), text("plan"));
  }

  void deliver(const Metadata& question, const Tree& content) {
    if (question.expires() <= clock_.now()) return;
    Metadata head = answer_head(question, node_, clock_.now());
    const Tree tree = answer_tree(head, content);
    const Bytes announced = request::push_messages(node_, head, tree, kUntold);
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      const Upload upload = response::push_messages(patiently(question, "push-messages", announced));
      const std::set<std::string> wanted(upload.wanted.begin(), upload.wanted.end());
      const bool all = wanted.empty();  // announced before, and the answer was lost on the way
      bool kept = true;
      for (const auto& [id, bytes] : tree.objects) {
        if (!all && wanted.count(id) == 0) continue;
        const Bytes body = request::push_object(node_, question.run_id, id, bytes, all ? "" : upload.session);
        kept = response::flag(patiently(question, "push-object", body)) && kept;
      }
      if (kept || all) return;
    }
    mismatch("the server did not keep an answer");
  }

  // Makes a call again while the server is away and somebody waits for us.
  Bytes patiently(const Metadata& question, const std::string& name, const Bytes& body) {
    for (double pause = 0.2;; pause = std::min(pause * 1.7, 10.0)) {
      try {
        return call(connection_, name, body);
      } catch (const Refusal& refusal) {
        if (refusal.code != "server-unreachable" || stopping || question.expires() <= clock_.now()) throw;
      }
      rest(pause);
    }
  }

  Client& client_;
  const Config& config_;
  const DeviceKey key_;
  ServerClock clock_;
  Connection connection_;
  std::unique_ptr<Heart> heart_;
  std::uint64_t node_ = 0;
  std::map<std::uint64_t, Run> runs_;
  std::set<std::string> seen_;
  Conditions conditions_;
  std::string unfetched_;
  std::chrono::steady_clock::time_point next_fetch_ = std::chrono::steady_clock::now() + kFirstFetch;
  std::chrono::steady_clock::time_point next_look_ = std::chrono::steady_clock::now() + kFirstLook;
  long answered_ = 0;
};

}  // namespace

void run_node(Client& client, long messages) { Node(client).run(messages); }
void stop_node() { stopping = true; }

}  // namespace fedslm
