// fedslm-native: vectors FILE | hostile FILE | check CONF | answer CONF KIND SCENARIO PLAN QUESTION | run CONF [MESSAGES]
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>

#include "client.h"
#include "node.h"
#include "vectors.h"

namespace {

using namespace fedslm;

constexpr char kUsage[] =
    "fedslm-native vectors FILE\n"
    "fedslm-native hostile FILE\n"
    "fedslm-native check CONF\n"
    "fedslm-native answer CONF train|evaluate|query SCENARIO PLAN QUESTION\n"
    "fedslm-native run CONF [MESSAGES]\n";

// The same numbers as those of the Python client (docs/errors.md).
const std::map<std::string, int> kExits = {
    {"config", 10},           {"conflicting-settings", 14}, {"budget-exhausted", 21}, {"sensitivity", 22},
    {"policy-refused", 24},   {"ledger", 26},               {"ledger-tampered", 27},  {"schema-mismatch", 31},
    {"no-usable-text", 63}};

void stop(int) { stop_node(); }

// A content from a file: the root's id and every object in hexadecimal, one a line.
Tree read_tree(const std::string& path) {
  const Bytes text = read_file(path, std::size_t{1} << 29);
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

int work(int count, char** words) {
  const std::string verb = count > 1 ? words[1] : "";
  if (verb == "vectors" && count == 3) {
    std::printf("%d comparisons hold\n", check_vectors(words[2]));
  } else if (verb == "hostile" && count == 3) {
    std::printf("%d messages were refused\n", check_hostile(words[2]));
  } else if (verb == "check" && count == 3) {
    const Client client(Config::load(words[2]));
    std::printf("answers %zu, epsilon %.6g at delta %g\n", client.answers(), client.epsilon(), client.config().delta);
  } else if (verb == "answer" && count == 7) {
    Client client(Config::load(words[2]));
    const Tree asked = read_tree(words[6]);
    write_tree(client.answer(words[3], decode_content(asked, asked.root), read_file(words[4], 1 << 24),
                             read_file(words[5], 1 << 24)));
  } else if (verb == "run" && (count == 3 || count == 4)) {
    std::signal(SIGTERM, stop);
    std::signal(SIGINT, stop);
    std::signal(SIGPIPE, SIG_IGN);
    Client client(Config::load(words[2]));
    run_node(client, count == 4 ? std::atol(words[3]) : 0);
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
