#include "ckpt/hf/families/families.h"

#include <algorithm>

#include "base/error.h"
#include "ckpt/text.h"

namespace moebius::ckpt::hf {
namespace {

std::string known_types() {
  std::vector<std::string> names;
  for (const Family* family : families()) names.emplace_back(family->model_type);
  std::sort(names.begin(), names.end());
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const std::vector<const Family*>& families() {
  static const std::vector<const Family*> all{&kLlama,      &kMixtral,    &kQwen3Moe, &kOlmoe, &kQwen2Moe,
                                              &kDeepseekV3, &kDeepseekV2, &kGlm4Moe,  &kGptOss};
  return all;
}

const Family& family_named(std::string_view model_type) {
  for (const Family* family : families())
    if (family->model_type == model_type) return *family;
  throw_user_error("the model type ", in_quotes(model_type), " is not known; known are ", known_types());
}

const Family& family_of(const JsonReader& json) {
  const std::string type = json.text("model_type");
  for (const Family* family : families())
    if (family->model_type == type) return *family;
  throw_user_error(json.where(), ": model_type is ", in_quotes(type), ", which is not known; known are ",
                   known_types());
}

}  // namespace moebius::ckpt::hf
