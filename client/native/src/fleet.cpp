#include "fleet.h"

#include <cmath>

#include "proto.h"

namespace fedslm {
namespace {

constexpr std::size_t kLongestGroup = 256;

Bytes node_of(std::uint64_t node) { return ProtoWriter().number(1, node).done(); }

Bytes metadata_of(const Metadata& head) {
  ProtoWriter out;
  out.number(1, head.run_id).text(2, head.message_id).number(3, head.source).number(4, head.destination);
  out.text(5, head.reply_to).text(6, head.group).real(7, head.ttl).text(8, head.type);
  out.real(9, head.created_at);
  if (head.source_task) out.varint(10, *head.source_task);
  if (head.destination_task) out.varint(11, *head.destination_task);
  return out.done();
}

Metadata read_metadata(std::string_view data) {
  Metadata head;
  ProtoReader reader(data);
  while (const auto field = reader.next()) {
    switch (field->number) {
      case 1: head.run_id = field->whole(); break;
      case 2: head.message_id = field->bytes(); break;
      case 3: head.source = field->whole(); break;
      case 4: head.destination = field->whole(); break;
      case 5: head.reply_to = field->bytes(); break;
      case 6: head.group = field->bytes(); break;
      case 7: head.ttl = field->real(); break;
      case 8: head.type = field->bytes(); break;
      case 9: head.created_at = field->real(); break;
      case 10: head.source_task = field->whole(); break;
      case 11: head.destination_task = field->whole(); break;
      default: break;
    }
  }
  return head;
}

Bytes object_tree(const Tree& tree, const std::string& name) {
  ProtoWriter out;
  out.text(1, name);
  for (const std::string& child : parse_object(tree.at(name)).children) out.bytes(2, object_tree(tree, child));
  return out.done();
}

}  // namespace

Metadata read_message(std::string_view message) {
  Metadata head;
  bool error = false;
  ProtoReader reader(message);
  while (const auto field = reader.next()) {
    if (field->number == 1) head = read_metadata(field->bytes());
    if (field->number == 3) error = true;
  }
  head.error = error;
  return head;
}

Bytes write_message(const Metadata& head, bool with_content) {
  ProtoWriter out;
  out.bytes(1, metadata_of(head));
  if (with_content) out.bytes(2, "");
  return out.done();
}

Metadata answer_head(const Metadata& question, std::uint64_t node_id, double now) {
  Metadata head;
  head.run_id = question.run_id;
  head.source = node_id;
  head.destination = question.source;
  head.reply_to = question.message_id;
  head.group = question.group;
  head.ttl = question.expires() - now;
  head.type = question.type;
  head.created_at = now;
  head.source_task = question.destination_task;
  head.destination_task = question.source_task;
  return head;
}

Tree answer_tree(Metadata& head, const Tree& content) {
  head.message_id.clear();
  Bytes root = build_object("Message", {content.root}, write_message(head, false));
  head.message_id = sha256(root);
  Tree tree = content;
  tree.root = head.message_id;
  tree.objects.emplace_back(tree.root, std::move(root));
  return tree;
}

void require_question(const Metadata& head, std::uint64_t node_id) {
  const bool kind = head.type == "train" || head.type == "evaluate" || head.type == "query";
  const bool right = is_digest(head.message_id) && head.run_id > 0 && head.source > 0 &&
                     head.destination == node_id && head.reply_to.empty() && !head.error && kind &&
                     head.group.size() <= kLongestGroup && std::isfinite(head.created_at) &&
                     std::isfinite(head.ttl) && head.ttl > 0;
  require(right, "a message has a head that no instruction to this node has");
}

std::string content_of(const Metadata& question, const Tree& tree) {
  const Object root = parse_object(tree.at(tree.root));
  const Metadata inner = read_message(root.body);
  const bool same = inner.run_id == question.run_id && inner.type == question.type &&
                    inner.source == question.source && inner.group == question.group;
  require(tree.root == question.message_id && same && root.children.size() == 1,
          "a message is not the one that its head says");
  return root.children[0];
}

namespace request {

Bytes activate(std::string_view public_key, double heartbeat) {
  return ProtoWriter().text(1, public_key).real(2, heartbeat).done();
}

Bytes deactivate(std::uint64_t node) { return node_of(node); }

Bytes heartbeat(std::uint64_t node, double interval) {
  return ProtoWriter().bytes(1, node_of(node)).real(2, interval).done();
}

Bytes pull_messages(std::uint64_t node) { return ProtoWriter().bytes(1, node_of(node)).done(); }

Bytes get_run(std::uint64_t node, std::uint64_t run) {
  return ProtoWriter().bytes(1, node_of(node)).number(2, run).done();
}

Bytes pull_object(std::uint64_t node, std::uint64_t run, const std::string& id) {
  return ProtoWriter().bytes(1, node_of(node)).number(2, run).text(3, id).done();
}

Bytes confirm(std::uint64_t node, std::uint64_t run, const std::string& id) {
  return pull_object(node, run, id);
}

Bytes push_messages(std::uint64_t node, const Metadata& head, const Tree& tree, double seconds) {
  const Bytes packed(reinterpret_cast<const char*>(&seconds), sizeof seconds);
  return ProtoWriter()
      .bytes(1, node_of(node))
      .bytes(2, write_message(head, true))
      .bytes(3, object_tree(tree, tree.root))
      .bytes(4, packed)
      .done();
}

Bytes push_object(std::uint64_t node, std::uint64_t run, const std::string& id, std::string_view content,
                  const std::string& session) {
  return ProtoWriter().bytes(1, node_of(node)).number(2, run).text(3, id).text(4, content).text(5, session).done();
}

}  // namespace request

namespace response {

std::uint64_t activate(std::string_view body) {
  std::uint64_t node = 0;
  ProtoReader reader(body);
  while (const auto field = reader.next())
    if (field->number == 1) node = field->whole();
  require(node != 0, "the server gave this node no number");
  return node;
}

bool flag(std::string_view body) {
  bool found = false;
  ProtoReader reader(body);
  while (const auto field = reader.next())
    if (field->number == 1) found = field->whole() != 0;
  return found;
}

std::optional<Metadata> pull_messages(std::string_view body) {
  std::optional<Metadata> found;
  ProtoReader reader(body);
  while (const auto field = reader.next())
    if (field->number == 2 && !found) found = read_message(field->bytes());
  return found;
}

Run get_run(std::string_view body) {
  Run run;
  ProtoReader outer(body);
  while (const auto told = outer.next()) {
    if (told->number != 1) continue;
    ProtoReader reader(told->bytes());
    while (const auto field = reader.next()) {
      if (field->number == 1) run.run_id = field->whole();
      if (field->number == 5) run.bundle = field->bytes();
      if (field->number != 4) continue;
      std::string key, text;
      bool is_text = false;
      ProtoReader entry(field->bytes());
      while (const auto part = entry.next()) {
        if (part->number == 1) key = part->bytes();
        if (part->number != 2) continue;
        ProtoReader scalar(part->bytes());
        while (const auto value = scalar.next()) {
          is_text = value->number == 14;
          if (is_text) text = value->bytes();
        }
      }
      if (is_text) run.config[key] = text;
    }
  }
  return run;
}

std::optional<Bytes> pull_object(std::string_view body) {
  bool found = false, available = false;
  Bytes content;
  ProtoReader reader(body);
  while (const auto field = reader.next()) {
    if (field->number == 1) found = field->whole() != 0;
    if (field->number == 2) available = field->whole() != 0;
    if (field->number == 3) content = field->bytes();
  }
  require(found, "the server does not have an object of its own message");
  if (!available) return std::nullopt;
  return content;
}

Upload push_messages(std::string_view body) {
  Upload upload;
  ProtoReader reader(body);
  while (const auto field = reader.next()) {
    if (field->number == 3) upload.wanted.emplace_back(field->bytes());
    if (field->number == 4) upload.session = field->bytes();
  }
  return upload;
}

}  // namespace response

}  // namespace fedslm
