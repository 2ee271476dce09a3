// The text of the kernels, for OpenCL's compiler; written by the build from the .cl files.
#pragma once

namespace moebius::data {

extern const char* const kJsonLinesSource;

}  // namespace moebius::data
