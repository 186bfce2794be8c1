#include "client.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "skellam.h"

namespace fedslm {
namespace {

const std::set<std::string> kFields = {"protocol",    "run-id",      "server-round",      "config-digest",
                                       "plan-digest", "empty",       "ledger-seq",        "ledger-hash",
                                       "ledger-public_key", "ledger-signature"};

void descend(Floats& moving, const Doubles& total, double divisor, double rate) {
  const float step = static_cast<float>(rate);
  for (std::size_t i = 0; i < moving.size(); ++i) moving[i] -= step * static_cast<float>(total[i] / divisor);
}

}  // namespace

Floats private_steps(const Floats& start, std::size_t examples, std::int64_t steps, std::int64_t batch,
                     double rate, double clip, double noise, double probability, NoiseSource& source,
                     const GradientOf& gradient) {
  Floats moving = start;
  for (std::int64_t step = 0; step < steps; ++step) {
    Doubles total(moving.size(), 0.0);
    for (std::size_t row : source.poisson_subsample(examples, probability)) {
      const Floats found = gradient(row, moving);
      if (found.size() != moving.size()) throw Refusal("sensitivity", "a gradient has another size");
      add_scaled(total, found, clip_factor(norm_of(found), clip));
    }
    const Doubles drawn = source.normal(moving.size());
    for (std::size_t i = 0; i < total.size(); ++i) total[i] += noise * clip * drawn[i];
    descend(moving, total, static_cast<double>(batch), rate);
  }
  return moving;
}

Floats plain_steps(const Floats& start, std::size_t examples, std::int64_t steps, std::int64_t batch,
                   double rate, NoiseSource& source, const GradientOf& gradient) {
  if (examples == 0) throw Refusal("no-usable-text", "the device has no example");
  Floats moving = start;
  const std::size_t size = std::min(examples, static_cast<std::size_t>(batch));
  Secret<std::size_t> order(examples);
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::int64_t step = 0; step < steps; ++step) {
    Doubles total(moving.size(), 0.0);
    for (std::size_t i = 0; i < size; ++i) {
      std::swap(order[i], order[i + source.below(examples - i)]);
      const Floats found = gradient(order[i], moving);
      if (found.size() != moving.size()) throw Refusal("sensitivity", "a gradient has another size");
      if (std::isfinite(norm_of(found))) add_scaled(total, found, 1.0);
    }
    descend(moving, total, static_cast<double>(size), rate);
  }
  return moving;
}

Client::Client(const Config& config)
    : config_(config),
      manifest_(Manifest::load(config.step, config.step_digest)),
      engine_(open_engine(config.step, manifest_)),
      ledger_(config.state),
      secure_(config) {}

Tree Client::answer(const std::string& kind, const Content& content, const std::string& scenario,
                    const std::string& plan) {
  if (kind == "query") return encode_introduction(config_.client_index);
  if (kind != "train") refuse("held-out losses do not leave a device");
  const bool phased = content.header.count("phase") > 0;
  for (const auto& [name, value] : content.header) {
    (void)value;
    if (kFields.count(name) == 0 && !(phased && (name == "phase" || name == "payload")))
      throw Refusal("unsupported-model", "an instruction has a field that this client does not know");
  }
  const Terms terms = agree(config_, scenario, plan);
  manifest_.require_terms(terms);
  const std::string run = text_of(content.header, "run-id");
  const std::int64_t server_round = whole_of(content.header, "server-round");
  require(text_of(content.header, "config-digest") == terms.config_digest &&
              text_of(content.header, "plan-digest") == terms.plan_digest,
          "the instruction belongs to another scenario or plan");
  require(server_round >= 1 && server_round <= terms.rounds, "the instruction is of a round that is not planned");
  require(!run.empty() && run.size() <= 256, "the instruction names no run");
  if (!phased) {
    if (terms.secure()) throw Refusal("sensitivity", "an update leaves only as a share of a masked sum");
    return encode_update(server_round, terms.config_digest, terms.stage(), trained(content, terms));
  }
  return secure_.answer(content, terms, static_cast<std::int64_t>(manifest_.size(manifest_.trained)),
                        [&](std::int64_t cohort) {
                          const Floats update = trained(content, terms);
                          NoiseSource source = noise_of(terms, "share", server_round);
                          return noised_share(update, terms.clip, terms.grid, terms.noise_multiplier, cohort, source);
                        });
}

NoiseSource Client::noise_of(const Terms& terms, const std::string& name, std::int64_t server_round) const {
  if (!terms.seeded) return NoiseSource::from_system();
  return NoiseSource::seeded(NoiseSource::key_material(terms.seed, name, config_.client_index, server_round));
}

Floats Client::trained(const Content& content, const Terms& terms) {
  const std::string run = text_of(content.header, "run-id");
  const std::int64_t server_round = whole_of(content.header, "server-round");
  require(content.has_vector && content.vector.size() == manifest_.size(manifest_.trained) &&
              std::isfinite(norm_of(content.vector)),
          "the instruction has an adapter of another size, or one that is not finite");
  const Head head = head_of(config_, content.header);
  if (flag_of(content.header, "empty")) {
    require(terms.secure(), "only a secure sum has empty updates");
    ledger_.require_later(head);
    return Floats(content.vector.size(), 0.0f);  // touches no record, and costs nothing
  }

  const Bytes raw = read_file(config_.factors, std::size_t{1} << 31);
  if (sha256(raw) != config_.factors_digest) throw Refusal("base-model-mismatch", "factors is not the pinned file");
  Floats factors = floats_of(raw);
  if (factors.size() != manifest_.size("AB"))
    throw Refusal("base-model-mismatch", "factors is not of the step's adapter");

  // From here on the answer is paid for, whatever becomes of it.
  ledger_.charge(config_, terms, head, run, server_round);
  const std::vector<Example> examples = load_examples(config_.examples, manifest_);

  const GradientOf gradient = [&](std::size_t number, const Floats& moving) {
    may_go_on_();
    std::size_t at = 0, from = 0;
    for (const Factor& factor : manifest_.factors) {
      if (manifest_.trained.find(factor.kind) != std::string::npos) {
        std::copy_n(moving.begin() + static_cast<std::ptrdiff_t>(from), factor.size,
                    factors.begin() + static_cast<std::ptrdiff_t>(at));
        from += factor.size;
      }
      at += factor.size;
    }
    return engine_->gradient(examples[number], factors);
  };
  if (terms.mode == "example") {
    NoiseSource source = noise_of(terms, "example-noise", server_round);
    Floats update = change(content.vector,
                           private_steps(content.vector, examples.size(), terms.local_steps, terms.batch_size,
                                         terms.learning_rate, terms.clip, terms.noise_multiplier,
                                         terms.sampling_probability, source, gradient));
    // Asked without regard to the sample: an empty one is stopped as any other.
    may_go_on_();
    return update;
  }
  NoiseSource batches = NoiseSource::from_system();
  // A device without text takes part in a secure sum with an empty update, which nobody can tell from another.
  if (terms.secure() && examples.empty()) return Floats(content.vector.size(), 0.0f);
  const Floats moved = plain_steps(content.vector, examples.size(), terms.local_steps, terms.batch_size,
                                   terms.learning_rate, batches, gradient);
  return clipped(change(content.vector, moved), terms.clip);
}

}  // namespace fedslm
