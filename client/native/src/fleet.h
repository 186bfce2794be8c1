// The calls of Flower 1.41's Fleet protocol: docs/protocol.md, sections 1 and 2.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common.h"
#include "objects.h"

namespace fedslm {

// The head of a message.
struct Metadata {
  std::uint64_t run_id = 0, source = 0, destination = 0;
  std::string message_id, reply_to, group, type;
  double ttl = 0, created_at = 0;
  std::optional<std::uint64_t> source_task, destination_task;
  bool error = false;  // of the message that it heads

  double expires() const { return created_at + ttl; }
};

Metadata read_message(std::string_view message);
Bytes write_message(const Metadata& head, bool with_content);
// The head of the answer to a question, without its name.
Metadata answer_head(const Metadata& question, std::uint64_t node_id, double now);
// Puts a content under a head and names both.
Tree answer_tree(Metadata& head, const Tree& content);
// Refuses a head that no instruction to this node has.
void require_question(const Metadata& head, std::uint64_t node_id);
// Compares a question's two heads; returns the name of its content.
std::string content_of(const Metadata& question, const Tree& tree);

struct Run {
  std::uint64_t run_id = 0;
  std::string bundle;
  std::map<std::string, std::string> config;  // settings that are texts
};

struct Upload {
  std::string session;
  std::vector<std::string> wanted;
};

namespace request {
Bytes activate(std::string_view public_key, double heartbeat);
Bytes deactivate(std::uint64_t node);
Bytes heartbeat(std::uint64_t node, double interval);
Bytes pull_messages(std::uint64_t node);
Bytes get_run(std::uint64_t node, std::uint64_t run);
Bytes pull_object(std::uint64_t node, std::uint64_t run, const std::string& id);
Bytes confirm(std::uint64_t node, std::uint64_t run, const std::string& id);
Bytes push_messages(std::uint64_t node, const Metadata& head, const Tree& tree, double seconds);
Bytes push_object(std::uint64_t node, std::uint64_t run, const std::string& id, std::string_view content,
                  const std::string& session);
}  // namespace request

namespace response {
std::uint64_t activate(std::string_view body);
bool flag(std::string_view body);  // of heartbeat and push-object
std::optional<Metadata> pull_messages(std::string_view body);
Run get_run(std::string_view body);
// The object; nothing while the server waits for it itself.
std::optional<Bytes> pull_object(std::string_view body);
Upload push_messages(std::string_view body);
}  // namespace response

}  // namespace fedslm
