// fedslm-native: kUsage says what it does.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <functional>
#include <iostream>
#include <map>

#include "adapters.h"
#include "bench.h"
#include "client.h"
#include "enroll.h"
#include "node.h"
#include "vectors.h"

namespace {

using namespace fedslm;

constexpr char kUsage[] =
    "fedslm-native enroll TOKEN|- FOLDER\n"
    "fedslm-native renew FOLDER [--if-due]\n"
    "fedslm-native leave FOLDER\n"
    "fedslm-native fetch CONF\n"
    "fedslm-native identity FOLDER\n"
    "fedslm-native check CONF\n"
    "fedslm-native conditions CONF\n"
    "fedslm-native run CONF [MESSAGES]\n"
    "fedslm-native bench STEP ROWS\n"
    "for tests:\n"
    "fedslm-native conditions CONF PROCESS ROOT...\n"
    "fedslm-native vectors FILE\n"
    "fedslm-native hostile FILE\n"
    "fedslm-native answer CONF train|evaluate|query SCENARIO PLAN QUESTION|-\n";

// The same numbers as those of the Python client (docs/errors.md).
const std::map<std::string, int> kExits = {
    {"usage", 2},                {"config", 10},              {"invalid-value", 12},       {"conflicting-settings", 14}, {"budget-exhausted", 21},
    {"sensitivity", 22},         {"policy-refused", 24},      {"ledger", 26},               {"ledger-tampered", 27},
    {"protocol", 30},            {"schema-mismatch", 31},     {"quorum", 32},               {"secure-aggregation", 34},   {"adapter-incompatible", 41},
    {"adapter-corrupt", 42},     {"adapter-untrusted", 43},   {"no-usable-text", 63},       {"model-not-found", 71},
    {"unsupported-model", 73},   {"base-model-mismatch", 74}, {"out-of-disk", 81},          {"fleet", 90},
    {"enrolment-refused", 91},   {"access-denied", 92},       {"certificate-invalid", 93},  {"server-unreachable", 94},
    {"already-running", 95}};

std::string token_of(const std::string& word) {
  if (word != "-") return word;
  std::string text;
  std::getline(std::cin, text);
  return text;
}

void stop(int) { stop_node(); }

// Each root is one look, ten seconds after the one before; the last one is reported.
int judge(const std::string& path, int roots, char** words) {
  double now = 0;
  Conditions conditions(Config::load(path).conditions, Machine(), [&now] { return now; });
  std::vector<Condition> found = roots > 0 ? std::vector<Condition>() : conditions.report();
  for (int i = 1; i < roots; ++i, now += 10) {
    conditions.look_at(Machine(words[i], words[0]));
    found = conditions.report();
  }
  bool all = true;
  for (const Condition& one : found) {
    std::printf("%s %s: %s\n", one.met ? "holds" : "fails", one.name.c_str(), one.found.c_str());
    all = all && one.met;
  }
  return all ? 0 : 24;
}

// A content from a file: the root's id and every object in hexadecimal, one a line.
Tree read_tree(const Bytes& text) {
  Tree tree;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (tree.root.empty()) {
      tree.root = line;
    } else {
      Bytes bytes = unhex(line);
      tree.objects.emplace_back(sha256(bytes), std::move(bytes));
    }
  }
  return collect(tree.root, "RecordDict", [&tree](const std::string& id) { return tree.at(id); });
}

void write_tree(const Tree& tree) {
  std::printf("%s\n", tree.root.c_str());
  for (const auto& object : tree.objects) std::printf("%s\n", hex(object.second).c_str());
}

// One question after the other from standard input, each ended by an empty line, as its answer or refusal is:
// what belongs together, as the phases of a secure aggregation do, is answered by one process.
void converse(const std::function<void(const Bytes&)>& reply) {
  Bytes text, line;
  while (std::getline(std::cin, line)) {
    text += line + "\n";
    if (!line.empty()) continue;
    try {
      reply(text.substr(0, text.size() - 1));
    } catch (const Refusal& refusal) {
      std::printf("%s: %s\n", refusal.code.c_str(), refusal.what());
    }
    std::printf("\n");
    std::fflush(stdout);
    text.clear();
  }
}

int work(int count, char** words) {
  const std::string verb = count > 1 ? words[1] : "";
  std::signal(SIGPIPE, SIG_IGN);
  if (verb == "enroll" && count == 4) {
    std::printf("enrolled as client %lld\n", static_cast<long long>(enroll(token_of(words[2]), words[3])));
  } else if (verb == "renew" && (count == 3 || (count == 4 && std::string(words[3]) == "--if-due"))) {
    std::puts(renew(Device::load(words[2]), count == 4) ? "renewed" : "not due yet");
  } else if (verb == "identity" && count == 3) {
    std::puts(identity_in(words[2]).c_str());
  } else if (verb == "vectors" && count == 3) {
    std::printf("%d comparisons hold\n", check_vectors(words[2]));
  } else if (verb == "hostile" && count == 3) {
    std::printf("%d messages were refused\n", check_hostile(words[2]));
  } else if (verb == "check" && count == 3) {
    const Client client(Config::load(words[2]));
    std::printf("answers %zu, epsilon %.6g at delta %g\n", client.answers(), client.epsilon(), client.config().delta);
  } else if (verb == "leave" && count == 3) {
    leave(Device::load(words[2]));
    std::puts("left; the server knows");
  } else if (verb == "fetch" && count == 3) {
    const Fetched found = fetch_adapter(Config::load(words[2]));
    if (found.digest.empty())
      std::puts("no adapter is in use yet");
    else if (found.changed)
      std::printf("adapter %s in %s\n", found.digest.c_str(), found.folder.c_str());
    else
      std::printf("adapter %s is the newest\n", found.digest.c_str());
  } else if (verb == "conditions" && count >= 3) {
    return judge(words[2], count - 3, words + 3);
  } else if (verb == "answer" && count == 7) {
    Client client(Config::load(words[2]));
    Conditions conditions(client.config().conditions, Machine(), [] { return static_cast<double>(std::time(nullptr)); });
    client.watch([&conditions] {
      const std::string reasons = conditions.reasons();
      if (!reasons.empty()) refuse(reasons);
    });
    const Bytes scenario = read_file(words[4], 1 << 24), plan = read_file(words[5], 1 << 24);
    const auto reply = [&](const Bytes& text) {
      const Tree asked = read_tree(text);
      write_tree(client.answer(words[3], decode_content(asked, asked.root), scenario, plan));
    };
    if (std::string(words[6]) == "-") {
      converse(reply);
    } else {
      reply(read_file(words[6], std::size_t{1} << 29));
    }
  } else if (verb == "run" && (count == 3 || count == 4)) {
    std::signal(SIGTERM, stop);
    std::signal(SIGINT, stop);
    Client client(Config::load(words[2]));
    run_node(client, count == 4 ? std::atol(words[3]) : 0);
  } else if (verb == "bench" && count == 4) {
    std::printf("%s\n", bench(words[2], std::atol(words[3])).c_str());
  } else {
    std::fputs(kUsage, stderr);
    return 2;
  }
  return 0;
}

}  // namespace

int main(int count, char** words) {
  try {
    return work(count, words);
  } catch (const Refusal& refusal) {
    std::fprintf(stderr, "%s: %s\n", refusal.code.c_str(), refusal.what());
    const auto found = kExits.find(refusal.code);
    return found == kExits.end() ? 1 : found->second;
  } catch (const std::exception&) {
    std::fputs("unexpected: an error without a name\n", stderr);
    return 1;
  }
}
