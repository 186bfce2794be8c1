// Masks: key streams of ChaCha20 added modulo 2^32: docs/protocol.md, section 8.
#pragma once

#include "agreed.h"

namespace fedslm {

// Key and nonce, 44 bytes, of the mask that a client adds alone.
SecretBytes self_mask_key(const SecretBytes& seed, std::string_view view, std::int64_t client);
// The same of the mask that one of two clients adds and the other subtracts; their order does not matter.
SecretBytes pair_mask_key(const SecretBytes& secret, std::string_view view, std::int64_t one, std::int64_t other);
void add_mask(Words& total, const SecretBytes& key, bool subtract);

}  // namespace fedslm
