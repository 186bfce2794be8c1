#include "config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "files.h"
#include "graph.h"
#include "json.h"
#include "lines.h"
#include "noise.h"
#include "skellam.h"
#include "tls.h"

namespace fedslm {
namespace {

const std::set<std::string> kPlan = {
    "schema", "mode", "unit", "neighboring_relation", "delta", "noise_multiplier", "clipping_norm",
    "max_grad_norm", "sampling_probability", "releases_per_round", "rounds", "max_participations",
    "population", "dataset_size", "noise_source", "cap"};
// Of schema 2, which a plan of distributed noise has.
const std::set<std::string> kPlanTwo = {"noise", "example", "quantile", "correlated", "distributed"};
constexpr double kRounding = 1e-12;

[[noreturn]] void wrong(const std::string& why) { throw Refusal("config", why); }

double positive(const Json& value, const char* name) {
  const double found = value.real();
  if (!(found > 0)) mismatch(std::string(name) + " is not above 0");
  return found;
}

std::int64_t counted(const Json& value, const char* name, std::int64_t most) {
  const std::int64_t found = value.whole();
  if (found < 1 || found > most) mismatch(std::string(name) + " is out of range");
  return found;
}

// A setting of the scenario must hold what this client does; anything else is refused by name.
void only(const Json& scenario, const char* section, const char* key, const std::string& text) {
  const Json& found = scenario.at(section).at(key);
  if (canonical(found) != text)
    throw Refusal("unsupported-model", std::string(section) + "." + key + " is " + canonical(found) +
                                           ", this client does " + text + " alone");
}

void require_known(const Json& scenario) {
  only(scenario, "aggregation", "share", "\"AB\"");
  only(scenario, "buffer", "size", "null");
  only(scenario, "clients", "local_epochs", "null");
  only(scenario, "clients", "optimizer", "\"sgd\"");
  only(scenario, "clients", "schedule", "\"constant\"");
  only(scenario, "clients", "warmup_rounds", "0");
  only(scenario, "devices", "ranks", "{}");
  only(scenario, "example", "max_grad_norm", "null");
  only(scenario, "link", "down", "\"fp32\"");
  only(scenario, "link", "up", "\"fp32\"");
  only(scenario, "lora", "dropout", "0.0");
  only(scenario, "lora", "variant", "\"lora\"");
  only(scenario, "mixture", "adapters", "1");
  only(scenario, "privacy", "mechanism", "\"gaussian\"");
  only(scenario, "privacy", "noise_schedule", "\"constant\"");
  only(scenario, "task", "kind", "\"causal-lm\"");
  const Json& policy = scenario.at("aggregation").at("policy");
  if (!policy.is_null() && policy.string() != "ffa") only(scenario, "aggregation", "policy", "\"ffa\"");
}

// What both say must be one thing; what the scenario derives is the plan's.
void same(const Json& said, const Json& planned, const char* name) {
  if (!said.is_null() && said.real() != planned.real())
    mismatch(std::string("plan and scenario differ on ") + name);
}

// The noise that clients add together, and how much of it the server cannot know, by the smaller of the plan's and
// the owner's share of clients that do not help it.
void read_distributed(const Config& config, const Json& privacy, const Json& plan, Terms& terms) {
  const Json& said = plan.at("distributed");
  require(said.members.size() == 4, "the terms of distributed noise have other fields");
  terms.grid = counted(said.at("grid"), "grid", kLargestGrid);
  terms.min_cohort = counted(said.at("min_cohort"), "min_cohort", 1 << 16);
  require(terms.min_cohort >= 3, "min_cohort is below 3");
  for (const char* name : {"honest_fraction", "survivor_fraction", "min_cohort"})
    require(canonical(privacy.at(name)) == canonical(said.at(name)), "plan and scenario differ on distributed noise");
  terms.honest_fraction = said.at("honest_fraction").text;
  terms.survivor_fraction = said.at("survivor_fraction").text;
  const double survive = require_fraction(terms.survivor_fraction);
  const double honest = std::min(require_fraction(terms.honest_fraction), config.honest_fraction);
  if (!(2.0 * survive + honest > 2.0))
    refuse("honest_fraction: as few honest clients as the owner counts on could be led to reveal two sums");
  terms.hidden_noise = terms.noise_multiplier * std::sqrt(survive + honest - 1.0 - kRounding);
}

void require_allowed(const Config& config, const Terms& terms) {
  if (terms.seeded && !config.rehearsal) refuse("noise_source: found seeded-simulation, allowed os-entropy");
  if (terms.rounds > config.max_rounds) refuse("max_rounds: the run has more rounds than the owner allows");
  if (!(terms.charged_noise() >= config.min_noise_multiplier))
    refuse("min_noise_multiplier: the plan has less noise than the owner allows");
  if (terms.secure() && terms.min_cohort < config.min_cohort)
    refuse("min_cohort: the plan's cohorts are smaller than the owner allows");
  if (terms.mode == "example" && !(terms.sampling_probability <= config.max_sampling_probability))
    refuse("max_sampling_probability: the plan samples more than the owner allows");
  std::vector<double> renyi = renyi_of(terms.charged_probability(), terms.charged_noise(), terms.grid);
  for (double& one : renyi) one *= static_cast<double>(terms.rounds) * static_cast<double>(terms.charged_releases());
  if (!(epsilon_of(renyi, config.delta) <= config.max_epsilon))
    refuse("max_epsilon: the whole run would spend more than the owner allows");
}

}  // namespace

Config Config::load(const std::string& path) {
  Lines lines(path);
  lines.beside(kDevice);
  Config found;
  const std::string server = lines.text("server");
  try {
    const Address address(server);
    found.host = address.host;
    found.port = address.port;
  } catch (const Refusal&) {
    wrong("server is not host:port");
  }
  found.folder = folder_of(path);
  for (auto [name, field] : {std::pair{"ca", &found.ca}, std::pair{"key", &found.key},
                             std::pair{"step", &found.step}, std::pair{"factors", &found.factors},
                             std::pair{"examples", &found.examples}, std::pair{"state", &found.state}})
    *field = lines.path(name);
  while (found.state.size() > 1 && found.state.back() == '/') found.state.pop_back();
  found.renews = lines.has("certificate");
  found.fetches = found.renews && lines.has("adapter_key");
  // Device::load reads them.
  for (const char* name : {"name", "control", "certificate", "adapter_key", "base_digest"}) lines.drop(name);
  found.step_digest = lines.digest("step_digest");
  found.factors_digest = lines.digest("factors_digest");
  found.config_digest = lines.digest("config_digest");
  if (lines.has("server_key")) found.server_key = lines.digest("server_key");
  found.client_index = lines.whole("client_index", 0);
  found.mode = lines.text("mode");
  if (found.mode != "example" && found.mode != "client-central" && found.mode != "client-distributed")
    wrong("mode is neither example nor client-central nor client-distributed");
  if (found.mode == "client-distributed") {
    found.identity = lines.path("identity");
    found.roster = lines.path("roster");
    found.roster_digest = lines.digest("roster_digest");
    found.min_cohort = lines.whole("min_cohort", 3);
    found.honest_fraction = lines.real("honest_fraction", 0, 1);
  }
  found.max_rounds = lines.whole("max_rounds", 1);
  found.max_epsilon = lines.real("max_epsilon", 0, 1e3);
  found.delta = lines.real("delta", 1e-300, 0.5);
  found.min_noise_multiplier = lines.real("min_noise_multiplier", 1e-2, 1e6);
  if (found.mode == "example") found.max_sampling_probability = lines.real("max_sampling_probability", 0, 1);
  if (lines.has("rehearsal")) found.rehearsal = lines.yes("rehearsal");
  found.conditions = Asked::take(lines);
  found.adapters = AdapterRules::take(lines);
  if (lines.has("poll_seconds")) found.poll_seconds = lines.real("poll_seconds", 0.1, 3600);
  if (lines.has("heartbeat_seconds")) found.heartbeat_seconds = lines.real("heartbeat_seconds", 10, 1800);
  lines.done();
  return found;
}

Terms agree(const Config& config, const std::string& scenario_text, const std::string& plan_text) {
  const Json scenario = parse_json(scenario_text), plan = parse_json(plan_text);
  require(canonical(scenario) == scenario_text && canonical(plan) == plan_text,
          "scenario or plan is not in canonical form");
  Terms terms;
  terms.config_digest = sha256(canonical(scenario, "performance"));
  terms.plan_digest = sha256(plan_text);
  if (terms.config_digest != config.config_digest)
    refuse("config_digest: the owner did not approve scenario " + terms.config_digest);
  require_known(scenario);
  std::set<std::string> names;
  for (const auto& member : plan.members) names.insert(member.first);
  const bool secure = plan.at("mode").string() == "client-distributed";
  std::set<std::string> expected = kPlan;
  if (secure) expected.insert(kPlanTwo.begin(), kPlanTwo.end());
  bool plain = names == expected && plan.at("schema").whole() == (secure ? 2 : 1);
  for (const char* name : {"example", "quantile", "correlated"}) plain = plain && (!secure || plan.at(name).is_null());
  if (!plain || (secure && plan.at("noise").string() != "skellam"))
    throw Refusal("unsupported-model", "the plan has a mechanism that this client does not do");
  const Json& privacy = scenario.at("privacy");
  const Json& clients = scenario.at("clients");
  terms.mode = plan.at("mode").string();
  if (terms.mode != "example" && terms.mode != "client-central" && !secure)
    refuse("mode: found " + terms.mode + ", this client does example, client-central and client-distributed");
  if (terms.mode != config.mode) refuse("mode: found " + terms.mode + ", allowed " + config.mode);
  require(privacy.at("mode").string() == terms.mode, "plan and scenario differ on mode");
  if (plan.at("neighboring_relation").string() != "add-or-remove-one")
    refuse("neighboring_relation: this client counts add-or-remove-one");
  const std::string source = plan.at("noise_source").string();
  require(source == "os-entropy" || source == "seeded-simulation", "a plan names an unknown noise source");
  require(privacy.at("noise_source").string() == source, "plan and scenario differ on noise_source");
  terms.seeded = source == "seeded-simulation";
  terms.seed = scenario.at("run").at("seed").whole();
  terms.rounds = counted(plan.at("rounds"), "rounds", 1 << 20);
  require(scenario.at("run").at("rounds").whole() == terms.rounds, "plan and scenario differ on rounds");
  terms.local_steps = counted(clients.at("local_steps"), "local_steps", 1 << 16);
  terms.batch_size = counted(clients.at("batch_size"), "batch_size", 1 << 20);
  terms.learning_rate = positive(clients.at("learning_rate"), "learning_rate");
  terms.noise_multiplier = positive(plan.at("noise_multiplier"), "noise_multiplier");
  same(privacy.at("noise_multiplier"), plan.at("noise_multiplier"), "noise_multiplier");
  if (terms.mode == "example") {
    terms.clip = positive(plan.at("max_grad_norm"), "max_grad_norm");
    terms.sampling_probability = positive(plan.at("sampling_probability"), "sampling_probability");
    require(terms.sampling_probability <= 1, "sampling_probability is above 1");
    same(privacy.at("max_grad_norm"), plan.at("max_grad_norm"), "max_grad_norm");
    same(privacy.at("sampling_probability"), plan.at("sampling_probability"), "sampling_probability");
    require(plan.at("releases_per_round").whole() == terms.local_steps, "plan and scenario differ on local steps");
  } else {
    terms.clip = positive(plan.at("clipping_norm"), "clipping_norm");
    same(privacy.at("clipping_norm"), plan.at("clipping_norm"), "clipping_norm");
    require(plan.at("releases_per_round").whole() == 1, "a client mode has one release a round");
  }
  if (secure) read_distributed(config, privacy, plan, terms);
  terms.length = counted(scenario.at("data").at("max_length"), "max_length", 1 << 16);
  terms.rank = counted(scenario.at("lora").at("r"), "lora.r", 1 << 16);
  terms.alpha = positive(scenario.at("lora").at("alpha"), "lora.alpha");
  require_allowed(config, terms);
  return terms;
}

}  // namespace fedslm
