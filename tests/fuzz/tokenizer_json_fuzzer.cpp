// The reader of tokenizer.json, and a tokenizer made of what it read: UserError, or ids inside the
// vocabulary.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "data/bpe/bpe_tokenizer.h"

// Formats that open_tokenizer knows and that nothing here opens.
namespace moebius::data {
std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path&) {
  std::abort();
}
std::shared_ptr<const Tokenizer> load_tokenizer_json(const std::filesystem::path&) {
  std::abort();
}
}  // namespace moebius::data

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moebius::set_log_level(moebius::LogLevel::kOff);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moebius::data;
  try {
    BpeTokenizer tokenizer(parse_tokenizer_file(std::string(reinterpret_cast<const char*>(data), size), "f"),
                           {});
    std::vector<int32_t> ids;
    tokenizer.encode("Hello, world! 123\n\t Straße 你好 <s></s> \xF0\x9F\x99\x82 a\xCC\x81 \xFF", ids);
    for (const int32_t id : ids)
      if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
    (void)tokenizer.decode(ids);
  } catch (const moebius::UserError&) {
  }
  return 0;
}
