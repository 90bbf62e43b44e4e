// A second file of the same program: headers may be included in many.
#if __has_include(<weft/weft.h>)
#include <weft/weft.h>
#endif
#include <weft/nn/safetensors.h>

#include <vector>

int round_trip(const char* file) {
  std::vector<float> values{1.5f, -2};
  weft::TensorMap map{{"w", weft::HostTensor::from<float>(weft::DType::bf16, {2}, values)}};
  weft::write_safetensors(file, map);
  return weft::read_safetensors(file).at("w").values<float>() == values ? 0 : 1;
}
