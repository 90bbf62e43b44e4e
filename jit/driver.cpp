#include "jit/driver.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "jit/error.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr int kOldestDriver = 12000;  // the first with cuLibraryLoadData

struct Names {
  std::string title;   // for messages
  std::string stem;    // file name without the major version
  std::string folder;  // of the NVIDIA wheel: site-packages/nvidia/<folder>/lib
  std::string places;  // where it is looked for, in words
  std::string install;
};

constexpr const char* kToolkitPlaces =
    "the loader's path, $CUDA_HOME, $CUDA_PATH, $CONDA_PREFIX, /usr/local/cuda*, /opt/cuda, the system's library "
    "folders, "
    "and the nvidia wheels of python3 in $VIRTUAL_ENV, $CONDA_PREFIX, ~/.local, /usr/local and /usr";

const Names& names_of(CudaLibrary library) {
  static const Names names[] = {
      {"the CUDA driver", "libcuda.so.", "", "the loader's path, the system's library folders and /usr/lib/wsl/lib",
       "install NVIDIA's driver (apt-get install nvidia-driver, or ubuntu-drivers install)"},
      {"NVRTC", "libnvrtc.so.", "cuda_nvrtc", kToolkitPlaces,
       "pip install nvidia-cuda-nvrtc (for a driver of CUDA 12: nvidia-cuda-nvrtc-cu12), or apt-get install "
       "cuda-nvrtc-13-0 from NVIDIA's repository"},
      {"cuBLASLt", "libcublasLt.so.", "cublas", kToolkitPlaces,
       "pip install nvidia-cublas (for a driver of CUDA 12: nvidia-cublas-cu12), or apt-get install "
       "libcublas-13-0 from NVIDIA's repository"},
      {"NCCL", "libnccl.so.", "nccl", kToolkitPlaces,
       "pip install nvidia-nccl-cu13 (for a driver of CUDA 12: nvidia-nccl-cu12), or apt-get install libnccl2 from NVIDIA's "
       "repository"}};
  return names[int(library)];
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::vector<fs::path> split_paths(const std::string& list) {
  std::vector<fs::path> paths;
  for (std::size_t begin = 0; begin < list.size();) {
    std::size_t end = std::min(list.find(':', begin), list.size());
    if (end > begin) paths.emplace_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return paths;
}

// The folders in `parent` whose name begins with `prefix`, the last in alphabetical order (the newest version) first.
std::vector<fs::path> folders_like(const fs::path& parent, std::string_view prefix) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator i(parent, error), end; !error && i != end; i.increment(error))
    if (i->path().filename().string().starts_with(prefix)) found.push_back(i->path());
  std::sort(found.rbegin(), found.rend());
  return found;
}

#ifdef __aarch64__
constexpr const char *kTarget = "sbsa-linux", *kSystem = "/usr/lib/aarch64-linux-gnu";
#else
constexpr const char *kTarget = "x86_64-linux", *kSystem = "/usr/lib/x86_64-linux-gnu";
#endif

// Where the toolkit, the distributions and NVIDIA's wheels put the libraries, best first.
std::vector<fs::path> usual_folders(const Names& names) {
  if (names.folder.empty()) return {kSystem, "/usr/lib64", "/usr/lib/wsl/lib"};  // the driver is part of the system
  std::vector<fs::path> toolkits, prefixes, folders;
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"})
    if (std::string path = environment(variable); !path.empty()) toolkits.emplace_back(path);
  for (const fs::path& path : folders_like("/usr/local", "cuda")) toolkits.push_back(path);
  toolkits.emplace_back("/opt/cuda");
  for (const fs::path& path : toolkits)
    for (fs::path sub : {fs::path("lib64"), fs::path("targets") / kTarget / "lib", fs::path("lib")})
      folders.push_back(path / sub);
  for (const char* path : {kSystem, "/usr/lib64"}) folders.emplace_back(path);

  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (std::string path = environment(variable); !path.empty()) prefixes.emplace_back(path);
  if (std::string home = environment("HOME"); !home.empty()) prefixes.push_back(fs::path(home) / ".local");
  for (const char* path : {"/usr/local", "/usr"}) prefixes.emplace_back(path);
  for (const fs::path& prefix : prefixes)
    for (const fs::path& python : folders_like(prefix / "lib", "python3"))
      for (const char* packages : {"site-packages", "dist-packages"})
        for (const std::string& wheel : {std::string("cu13"), names.folder})
          folders.push_back(python / packages / "nvidia" / wheel / "lib");
  return folders;
}

struct Opened {
  void* handle = nullptr;
  std::string path;
  std::string problem;  // of a file that is there and cannot be opened
};

std::string path_of(void* handle) {
  link_map* map = nullptr;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map ? map->l_name : "";
}

// NVRTC opens its builtins by name when it compiles, which works only if the loader knows the folder, or the library.
void open_builtins(const fs::path& nvrtc_file) {
  std::error_code error;
  for (const fs::path& file : folders_like(fs::canonical(nvrtc_file, error).parent_path(), "libnvrtc-builtins.so."))
    if (dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL)) return;
}

Opened open_in(const std::vector<fs::path>& folders, const std::string& file, bool loader) {
  Opened opened;
  if (loader) opened.handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (auto folder = folders.begin(); !opened.handle && folder != folders.end(); ++folder) {
    std::error_code error;
    if (!fs::exists(*folder / file, error)) continue;
    opened.handle = dlopen((*folder / file).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (const char* reason = opened.handle ? nullptr : dlerror(); reason) opened.problem += std::string("; ") + reason;
  }
  if (opened.handle) opened.path = path_of(opened.handle);
  return opened;
}

// A cubin of a later major version than the driver's is refused, so a driver of CUDA 12 prefers the libraries of 12.
std::vector<std::string> majors(CudaLibrary library) {
  if (library == CudaLibrary::driver) return {"1"};
  if (library == CudaLibrary::nccl) return {"2"};
  int version = 0;
  bool old = !missing_library(CudaLibrary::driver) && cuda_driver().cuDriverGetVersion(&version) == cu::CUDA_SUCCESS &&
             version < 13000;
  return old ? std::vector<std::string>{"12", "13"} : std::vector<std::string>{"13", "12"};
}

// WEFT_CUDA_LIB_DIR is exclusive, so that what is used is what was asked for; but the driver is the system's. WEFT_NCCL is the
// file of NCCL itself.
Opened open_library(CudaLibrary library, ErrorParts& missing) {
  const Names& names = names_of(library);
  if (const std::string file = environment("WEFT_NCCL"); library == CudaLibrary::nccl && !file.empty()) {
    Opened opened;
    opened.handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened.handle) return opened.path = path_of(opened.handle), opened;
    const char* reason = dlerror();
    missing = {names.title + " cannot be opened", reason ? reason : file, {}, "WEFT_NCCL names the file libnccl.so.2"};
    return {};
  }
  const std::string own = environment("WEFT_CUDA_LIB_DIR");
  const bool usual = own.empty() || library == CudaLibrary::driver;
  std::string files, problems;
  for (const std::string& major : majors(library)) {
    const std::string file = names.stem + major;
    Opened opened = open_in(split_paths(own), file, false);
    if (!opened.handle && usual) {
      problems += opened.problem;
      opened = open_in(usual_folders(names), file, true);
    }
    if (opened.handle) return opened;
    problems += opened.problem;
    files += (files.empty() ? "" : " or ") + file;
  }
  missing.what = names.title + " is missing";
  missing.numbers = "no " + files + " in ";
  if (!own.empty()) missing.numbers += "WEFT_CUDA_LIB_DIR (" + own + ")";
  if (usual) missing.numbers += (own.empty() ? "" : ", ") + names.places;
  missing.numbers += problems;
  missing.hint = names.install + "; or set WEFT_CUDA_LIB_DIR to the folders that have it, separated by colons";
  return {};
}

template <class Table>
struct Loaded {
  Table table;
  std::string path;
  std::optional<ErrorParts> missing;
};

// Fills a table with find(name); a function that is not there makes the library too old.
template <class Table, class Fill>
Loaded<Table> load(CudaLibrary library, Fill fill) {
  Loaded<Table> loaded;
  ErrorParts missing;
  const Opened opened = open_library(library, missing);
  if (!opened.handle) {
    loaded.missing = missing;
    return loaded;
  }
  loaded.path = opened.path;
  if (library == CudaLibrary::nvrtc) open_builtins(opened.path);
  if (std::string absent = fill(opened.handle, loaded.table); !absent.empty())
    loaded.missing = {names_of(library).title + " is too old",
                      opened.path + " has no" + absent,
                      {},
                      "weft needs CUDA 12.0 or later: " + names_of(library).install};
  return loaded;
}

#define WEFT_FILL(result, name, ...)                                \
  table.name = reinterpret_cast<decltype(table.name)>(find(#name)); \
  if (!table.name) absent += std::string(absent.empty() ? " " : ", ") + #name;

const Loaded<Driver>& loaded_driver() {
  static const Loaded<Driver> loaded = load<Driver>(CudaLibrary::driver, [](void* handle, Driver& table) {
    using GetProcAddress = cu::CUresult (*)(const char* name, void** function, int version, std::uint64_t flags, int* status);
    const auto get = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
    if (!get) return std::string(" cuGetProcAddress_v2");
    auto find = [&](const char* name) {
      void* function = nullptr;
      int status = 0;
      return get(name, &function, kOldestDriver, 0, &status) == cu::CUDA_SUCCESS ? function : nullptr;
    };
    std::string absent;
    WEFT_CUDA_DRIVER(WEFT_FILL)
    return absent;
  });
  return loaded;
}

const Loaded<Nvrtc>& loaded_nvrtc() {
  static const Loaded<Nvrtc> loaded = load<Nvrtc>(CudaLibrary::nvrtc, [](void* handle, Nvrtc& table) {
    auto find = [&](const char* name) { return dlsym(handle, name); };
    std::string absent;
    WEFT_NVRTC(WEFT_FILL)
    return absent;
  });
  return loaded;
}

const Loaded<CublasLt>& loaded_cublas_lt() {
  static const Loaded<CublasLt> loaded = load<CublasLt>(CudaLibrary::cublas_lt, [](void* handle, CublasLt& table) {
    auto find = [&](const char* name) { return dlsym(handle, name); };
    std::string absent;
    WEFT_CUBLAS_LT(WEFT_FILL)
    return absent;
  });
  return loaded;
}

const Loaded<Nccl>& loaded_nccl() {
  static const Loaded<Nccl> loaded = load<Nccl>(CudaLibrary::nccl, [](void* handle, Nccl& table) {
    auto find = [&](const char* name) { return dlsym(handle, name); };
    std::string absent;
    WEFT_NCCL(WEFT_FILL)
    std::string late;
    std::swap(absent, late);
    WEFT_NCCL_LATE(WEFT_FILL)
    return late;
  });
  return loaded;
}
#undef WEFT_FILL

template <class Table>
const Table& table_of(const Loaded<Table>& loaded) {
  if (loaded.missing) throw Error(ErrorKind::device, *loaded.missing);
  return loaded.table;
}

// f(loaded library), whichever it is.
auto visit(CudaLibrary library, auto f) {
  if (library == CudaLibrary::driver) return f(loaded_driver());
  if (library == CudaLibrary::nvrtc) return f(loaded_nvrtc());
  if (library == CudaLibrary::nccl) return f(loaded_nccl());
  return f(loaded_cublas_lt());
}

std::string describe(const Driver& driver, cu::CUresult result) {
  const char *name = nullptr, *text = nullptr;
  driver.cuGetErrorName(result, &name);
  driver.cuGetErrorString(result, &text);
  return std::string(name ? name : "error " + std::to_string(int(result))) + (text ? std::string(" (") + text + ")" : "");
}

}  // namespace

const Driver& cuda_driver() { return table_of(loaded_driver()); }
const Nvrtc& nvrtc() { return table_of(loaded_nvrtc()); }
const CublasLt& cublas_lt() { return table_of(loaded_cublas_lt()); }
const Nccl& nccl() { return table_of(loaded_nccl()); }

std::string nccl_version() {
  int version = 0;
  nccl().ncclGetVersion(&version);
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

std::optional<std::string> missing_library(CudaLibrary library) {
  return visit(library, [](const auto& loaded) -> std::optional<std::string> {
    if (!loaded.missing) return std::nullopt;
    return loaded.missing->what + ": " + loaded.missing->numbers;
  });
}

std::string library_path(CudaLibrary library) {
  return visit(library, [](const auto& loaded) { return loaded.path; });
}

std::string install_line(CudaLibrary library) { return names_of(library).install; }

std::optional<std::string> missing_cuda_device() {
  if (auto missing = missing_library(CudaLibrary::driver)) return missing;
  const Driver& driver = cuda_driver();
  int count = 0;
  cu::CUresult result = driver.cuInit(0);
  if (result == cu::CUDA_SUCCESS) result = driver.cuDeviceGetCount(&count);
  if (result != cu::CUDA_SUCCESS) return "the CUDA driver does not start: " + describe(driver, result);
  if (count == 0) return "the CUDA driver finds no device";
  return std::nullopt;
}

void cuda_check(const Driver& driver, cu::CUresult result, const char* what) {
  if (result != cu::CUDA_SUCCESS) fail(ErrorKind::device, std::string(what) + " failed", describe(driver, result));
}

}  // namespace weft
