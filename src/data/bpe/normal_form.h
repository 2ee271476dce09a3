// Unicode normalisation form C (Unicode Standard Annex 15), with the characters of Unicode 9.0, as the
// `tokenizers` package has it.
#pragma once

#include <string>
#include <string_view>

namespace moebius::data {

// Length of the longest prefix of `text` (well-formed UTF-8) of which one can tell at once that form C leaves
// it as it is whatever follows; text.size() when that is so for all of it.
size_t normal_form_c_prefix(std::string_view text);

// `text` in form C.
std::string normal_form_c(std::string_view text);

}  // namespace moebius::data
