// The families, each defined in a file of its own.
#pragma once

#include "ckpt/hf/family.h"

namespace moebius::ckpt::hf {

extern const Family kLlama;
extern const Family kMixtral;
extern const Family kQwen2Moe;
extern const Family kQwen3Moe;
extern const Family kOlmoe;
extern const Family kDeepseekV2;
extern const Family kDeepseekV3;
extern const Family kGlm4Moe;
extern const Family kGptOss;

}  // namespace moebius::ckpt::hf
