#include "train/trainer.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <new>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "config/dump.h"
#include "config/load.h"
#include "ops/device.h"
#include "parallel/communicator.h"
#include "parallel/mesh.h"
#include "telemetry/exporter.h"
#include "train/flops.h"
#include "train/int8_experts.h"
#include "train/model_files.h"
#include "train/plan.h"
#include "train/recompute_choice.h"
#include "train/run.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;

// Bytes that the run's device has for it; nothing when that cannot be read.
std::optional<int64_t> available_memory(at::Device device, int num_processes) {
  if (device.is_cuda()) {
    kernels::DeviceInfo info{};
    if (!ops::cuda_plugin()->device_info(device.index(), &info)) return std::nullopt;
    return info.free_memory_bytes / num_processes;
  }
  const Result<MachineMemory> memory = machine_memory();
  return memory.ok() ? std::optional<int64_t>(memory->available_bytes / num_processes) : std::nullopt;
}

// What the run needs to know of the config beyond what the user wrote.
config::RunConfig completed(const TrainOptions& options, const data::Tokenizer* tokenizer) {
  const config::RunConfig& config = options.config;
  const at::Device device = options.device;
  config::RunConfig full = config;
  full.model.vocab = vocabulary(config, tokenizer);
  if (full.train.micro_batch == 0) full.train.micro_batch = full.train.batch / batch_parts(options);
  if (options.mesh != nullptr) {
    full.parallel.dp = options.mesh->layout().size(parallel::Axis::dp);
    full.parallel.fsdp = options.mesh->layout().size(parallel::Axis::fsdp);
  }
  full = with_recompute(full, device.is_cuda(), available_memory(device, options.local_ranks));
  if (is_first(options) && config.train.recompute == "auto" && full.train.recompute != "none")
    log_info("train.recompute = \"", full.train.recompute, "\"",
             full.train.recompute_layers > 0
                 ? concat(", train.recompute_layers = ", full.train.recompute_layers)
                 : std::string(),
             " fits the memory: ", format_count(recompute_flops_per_token(full)), " more FLOPs per token");
  return full;
}

// The first line of what an allocator says when there is no memory; empty for other errors.
std::string out_of_memory(const std::exception& error) {
  const std::string text = error.what();
  const bool is_device = dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr;
  const bool is_host = dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
                       text.find("can't allocate memory") != std::string::npos ||
                       text.find("not enough memory") != std::string::npos;
  return is_device || is_host ? text.substr(0, text.find('\n')) : std::string();
}

void keep_tokenizer(const config::DataConfig& data, const fs::path& run_dir) {
  if (data.tokenizer == "bytes") return;
  const fs::path copy = run_dir / tokenizer_copy_name(data.tokenizer);
  if (!fs::exists(copy)) write_file_atomic(copy, read_file(data.tokenizer));
  for (const fs::path& file : data::companions_of(data.tokenizer)) {
    const fs::path beside = run_dir / file.filename();
    if (!fs::exists(beside)) write_file_atomic(beside, read_file(file));
  }
}

}  // namespace

TrainResult train(const TrainOptions& options) {
  if (options.mesh != nullptr && options.config.quant.is_on())
    throw_user_error(
        "quant.scheme is '", options.config.quant.scheme,
        "', but ranges and learned steps are not shared by processes; train with one process, or "
        "set quant.scheme = 'none'");
  check_precision(options.config, options.mesh == nullptr ? 1 : options.mesh->layout().world());
  const bool first = is_first(options);
  if (first) check_run_folder(options.run_dir, options.mode);
  telemetry::Registry registry;
  telemetry::TrainMetrics metrics(registry);
  std::optional<telemetry::Exporter> exporter;
  if (first && options.metrics_address) {
    exporter.emplace(registry, *options.metrics_address);
    log_info("metrics at ", exporter->url());
  }
  std::optional<ckpt::Checkpoint> checkpoint;
  if (options.mode == RunMode::resume) {
    checkpoint = ckpt::find_latest(options.run_dir);
    check_resumable(config::parse_run_config(checkpoint->config(), checkpoint->path().string()),
                    options.config, options.run_dir);
    if (checkpoint->step() >= options.config.train.steps)
      throw_user_error("--resume: ", options.run_dir.string(), " has done ", checkpoint->step(),
                       " steps, and train.steps is ", options.config.train.steps,
                       "; raise it with --set train.steps=N to train on");
  }
  const fs::path parent = fs::absolute(options.run_dir).parent_path();
  // What is not built yet is built by the first rank.
  if (!first) options.mesh->world().barrier();
  const data::Sources sources =
      data::open_sources(options.config.data, parent / "corpora", data::show_build_progress());
  if (first && options.mesh != nullptr) options.mesh->world().barrier();
  const config::RunConfig config = completed(options, sources.tokenizer.get());
  auto batches = data::make_training_batches(
      config.data, sources,
      {config.train.seed, config.train.sequence, config.train.batch, config.train.micro_batch,
       config.model.vocab, data::cost_of_model(config.model), batch_parts(options),
       options.mesh == nullptr ? 0 : options.mesh->layout().batch_part(options.mesh->rank())});
  at::globalContext().setDeterministicAlgorithms(config.train.deterministic, /*warn_only=*/false);

  const Plan plan = make_plan(config, options.device.is_cuda());
  if (const std::optional<int64_t> available = available_memory(options.device, options.local_ranks))
    check_memory_fits(plan, *available);

  // Both refuse what cannot serve before the folder is touched.
  grid_of(config.energy);
  check_governor(governor_options(config.energy, name_of(options.device).name));

  std::optional<ckpt::RunLock> lock;
  if (first) {
    lock.emplace(open_run_folder(options.run_dir, options.mode));
    write_file_atomic(options.run_dir / "config.toml",
                      config::dump(options.config, config::DumpStyle::kFull));
    keep_tokenizer(config.data, options.run_dir);
  }
  try {
    Run run(options, config, sources, lock ? &*lock : nullptr, metrics);
    if (checkpoint) run.restore(*checkpoint);
    checkpoint.reset();
    return run.train(std::move(batches));
  } catch (const UserError&) {
    throw;
  } catch (const std::exception& error) {
    const std::string what = out_of_memory(error);
    if (what.empty()) throw;
    throw UserError(out_of_memory_message(plan, what));
  }
}

}  // namespace moebius::train
