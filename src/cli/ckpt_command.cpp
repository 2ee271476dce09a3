#include "cli/ckpt_command.h"

#include <CLI/CLI.hpp>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/concat.h"
#include "base/error.h"
#include "base/hash.h"
#include "base/units.h"
#include "ckpt/checkpoint.h"
#include "ckpt/folder.h"
#include "ckpt/run_lock.h"

namespace moebius::cli {
namespace {

namespace fs = std::filesystem;

struct CkptArguments {
  std::string path;
  bool tensors = false, verify = false, json = false;
};

std::string shape_of(const std::vector<int64_t>& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
  return text + "]";
}

void print_text(const ckpt::Checkpoint& checkpoint, const CkptArguments& arguments) {
  const ckpt::Manifest& manifest = checkpoint.manifest();
  std::cout << checkpoint.path().string() << "\n"
            << "step        " << manifest.step << "\n"
            << "size        " << format_bytes(static_cast<int64_t>(manifest.num_bytes())) << " in "
            << manifest.shards.size() << (manifest.shards.size() == 1 ? " shard\n" : " shards\n");
  if (arguments.verify) std::cout << "checksums   verified\n";
  std::cout << "state       " << manifest.state_json << "\n";
  for (const ckpt::ManifestGroup& group : manifest.groups) {
    uint64_t num_bytes = 0;
    for (const ckpt::ManifestTensor& tensor : group.tensors) num_bytes += tensor.spec.num_bytes().value_or(0);
    std::cout << "\n"
              << group.name << ": " << group.tensors.size() << " tensors, "
              << format_bytes(static_cast<int64_t>(num_bytes)) << "\n";
    for (const ckpt::ManifestShard& shard : manifest.shards)
      if (shard.group == group.name)
        std::cout << "  " << shard.file << "  " << format_bytes(static_cast<int64_t>(shard.num_bytes))
                  << "  xxh3 " << hash_hex(shard.xxh3) << "\n";
    if (!arguments.tensors) continue;
    for (const ckpt::ManifestTensor& tensor : group.tensors)
      std::cout << "    " << tensor.spec.name << "  " << ckpt::dtype_name(tensor.spec.dtype) << " "
                << shape_of(tensor.spec.shape) << "  " << manifest.shards[tensor.shard].file << " at "
                << tensor.offset << "\n";
  }
}

void print_json(const ckpt::Checkpoint& checkpoint, const CkptArguments& arguments) {
  const ckpt::Manifest& manifest = checkpoint.manifest();
  nlohmann::ordered_json json;
  json["path"] = checkpoint.path().string();
  json["step"] = manifest.step;
  json["bytes"] = manifest.num_bytes();
  json["verified"] = arguments.verify;
  json["state"] = nlohmann::ordered_json::parse(manifest.state_json);
  for (const ckpt::ManifestShard& shard : manifest.shards)
    json["shards"].push_back({{"file", shard.file}, {"group", shard.group}, {"bytes", shard.num_bytes}});
  for (const ckpt::ManifestGroup& group : manifest.groups) {
    nlohmann::ordered_json& entry = json["groups"][group.name];
    entry["num_tensors"] = group.tensors.size();
    if (!arguments.tensors) continue;
    for (const ckpt::ManifestTensor& tensor : group.tensors)
      entry["tensors"][tensor.spec.name] = {{"dtype", ckpt::dtype_name(tensor.spec.dtype)},
                                            {"shape", tensor.spec.shape},
                                            {"shard", manifest.shards[tensor.shard].file},
                                            {"offset", tensor.offset}};
  }
  std::cout << json.dump(2) << "\n";
}

void run_inspect(const CkptArguments& arguments) {
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(arguments.path);
  if (arguments.json) {
    print_json(checkpoint, arguments);
  } else {
    print_text(checkpoint, arguments);
  }
  std::cout.flush();
}

void run_merge(const CkptArguments& arguments) {
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(arguments.path);
  const fs::path folder = fs::absolute(checkpoint.path()).lexically_normal();
  const fs::path run = folder.parent_path().parent_path();
  if (ckpt::step_dir(run, checkpoint.step()) != folder)
    throw_user_error("'", folder.string(), "' does not lie in a run as checkpoints/step-", checkpoint.step(),
                     "; move it to where the run that wrote it keeps its checkpoints");
  const size_t before = checkpoint.manifest().shards.size();
  const ckpt::RunLock lock(run);  // nobody trains in it
  const fs::path merged = ckpt::merge_shards(checkpoint, run);
  const size_t after = ckpt::Checkpoint::open(merged).manifest().shards.size();
  std::cout << merged.string() << ": " << before << " shards are " << after << " now\n";
  std::cout.flush();
}

}  // namespace

void add_ckpt_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("ckpt", "Look into checkpoints, or write their shards anew");
  command->require_subcommand(1);
  auto arguments = std::make_shared<CkptArguments>();

  CLI::App* inspect = command->add_subcommand("inspect", "Show step, state, shards and tensors");
  inspect->add_option("path", arguments->path, "Run folder (its newest checkpoint) or checkpoint")
      ->required();
  inspect->add_flag("--tensors", arguments->tensors, "List every tensor");
  inspect->add_flag("--verify", arguments->verify, "Read everything and compare checksums");
  inspect->add_flag("--json", arguments->json, "Print JSON");
  inspect->callback([arguments] { run_inspect(*arguments); });

  CLI::App* merge = command->add_subcommand(
      "merge", "Write a checkpoint of several processes as one process does, in its place");
  merge->add_option("path", arguments->path, "Run folder (its newest checkpoint) or checkpoint")->required();
  merge->callback([arguments] { run_merge(*arguments); });
}

}  // namespace moebius::cli
