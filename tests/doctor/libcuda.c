/* As much of NVIDIA's driver as doctor asks, with answers from the environment. */
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return number("STAND_IN_STATUS", 0); }
int cuDriverGetVersion(int *version) { *version = number("STAND_IN_CUDA", 13000); return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, getenv("STAND_IN_GPU"), length); return 0; }
int cuDeviceTotalMem_v2(size_t *nbytes, int device) { *nbytes = (size_t)number("STAND_IN_GB", 24) * 1000000000; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  int sm = number("STAND_IN_SM", 89);
  *value = attribute == 75 ? sm / 10 : sm % 10;
  return 0;
}
