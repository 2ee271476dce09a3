// Context parallelism: the ranks of an axis hold parts of the tokens of the same sequences (token_split.h),
// and keys and values go round among them, so that every query meets the keys before it. (Liu et al. 2023,
// "Ring Attention with Blockwise Transformers for Near-Infinite Context")
//
// In step j of n a rank attends to the keys of the rank j places before it, while these travel on to the next
// rank and those of step j + 1 arrive. Of its results it keeps the mean and the logarithm of the sum, in
// fp32. The backward pass sends keys and values round again; their gradients, in fp32, follow one step
// behind, and the owner adds its own. Sent by each rank, for T tokens of a micro-batch in all, W = Hk (d + e)
// values of a token's keys and values (of the rank's heads) in `b` bytes each:
//   forward   (n - 1) / n T W b            backward   (n - 1) / n T W (b + 4)
#pragma once

#include <memory>

#include "nn/context_axis.h"
#include "nn/decoder.h"
#include "nn/param_slice.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// `axis` outlives the result and every graph of autograd that was made with it.
std::shared_ptr<const nn::ContextAxis> make_context_axis(Communicator& axis);

// What a rank holds of a micro-batch of whole sequences (documents.sequence_length). With multi-token
// prediction also what comes behind each token. The documents stay those of whole sequences.
nn::TokenBatch part_of_batch(const nn::TokenBatch& whole, const nn::AxisPlace& place, bool with_mtp);

}  // namespace moebius::parallel
