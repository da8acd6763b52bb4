/* A CUDA runtime without a GPU. The "device's" memory is the host's, copies are made at once, kernels are written down by
 * name and do nothing. What a stream that is captured does not allow ends in the error of the real runtime. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <search.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "events.h"

#define TOTAL_NBYTES (141ull << 30)
#define PAGE_NBYTES 4096

/* The device that is pretended: an H200. */
static const struct cudaDeviceProp DEVICE = {
    .name = "Stand-in GPU", .major = 9, .minor = 0, .multiProcessorCount = 132, .totalGlobalMem = TOTAL_NBYTES,
    .warpSize = 32, .maxThreadsPerBlock = 1024, .maxThreadsPerMultiProcessor = 2048, .maxBlocksPerMultiProcessor = 32,
    .maxThreadsDim = {1024, 1024, 64}, .maxGridSize = {INT32_MAX, 65535, 65535}, .regsPerBlock = 65536,
    .regsPerMultiprocessor = 65536, .sharedMemPerBlock = 48 << 10, .sharedMemPerBlockOptin = 227 << 10,
    .sharedMemPerMultiprocessor = 228 << 10, .l2CacheSize = 60 << 20, .cooperativeLaunch = 1,
    .memoryPoolsSupported = 1,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static cudaError_t last_error;

static cudaError_t fail(cudaError_t error)
{
    return last_error = error;
}

static cudaError_t give(void **target, const void *value)
{
    *target = (void *)value;
    return cudaSuccess;
}

/* Streams, events and graphs are told apart by their addresses alone. */
static cudaError_t give_handle(void *target)
{
    return give(target, malloc(1));
}

/* Captures: one at a time, as there is one thread that makes them. */

static struct {
    int active, broken;
    enum cudaStreamCaptureMode mode;
    const void *stream;
} capture;

static int is_captured(const void *stream)
{
    return capture.active && capture.stream == stream;
}

static cudaError_t refuse(const char *function)
{
    stand_in_note(REFUSED, function, capture.stream);
    capture.broken = 1;
    return fail(cudaErrorStreamCaptureUnsupported);
}

/* Whether a call that might wait for the whole device is forbidden now: a relaxed capture allows it. */
static int is_unsafe(void)
{
    return capture.active && capture.mode != cudaStreamCaptureModeRelaxed;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    if (capture.active || !stream) /* the default stream cannot be captured */
        return refuse(__func__);
    stand_in_note(CAPTURE, __func__, stream);
    capture.active = 1, capture.broken = 0, capture.mode = mode, capture.stream = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = NULL;
    if (!is_captured(stream))
        return fail(cudaErrorIllegalState);
    capture.active = 0;
    return capture.broken ? fail(cudaErrorStreamCaptureInvalidated) : give_handle(graph);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = !is_captured(stream) ? cudaStreamCaptureStatusNone
              : capture.broken     ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags)
{
    return give_handle(executable);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    stand_in_note(REPLAY, __func__, stream);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    free(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    free(executable);
    return cudaSuccess;
}

/* Events that are read by tests. */

static struct event *events;
static size_t event_count, event_room;

void stand_in_note(enum kind kind, const char *name, const void *stream)
{
    pthread_mutex_lock(&lock);
    if (event_count == event_room) {
        event_room = event_room ? 2 * event_room : 1024;
        events = realloc(events, event_room * sizeof *events);
        if (!events)
            abort();
    }
    events[event_count++] = (struct event){kind, is_captured(stream), name};
    pthread_mutex_unlock(&lock);
}

int stand_in_call(const char *name)
{
    stand_in_note(LIBRARY, name, capture.stream);
    return 0;
}

const struct event *stand_in_events(size_t *count)
{
    *count = event_count;
    return events;
}

void stand_in_forget(void)
{
    event_count = 0;
}

/* Kernels: a program registers the addresses of its host functions with the names of what they launch. */

struct kernel {
    const void *function;
    const char *name;
};

static void *kernels;

static int by_function(const void *a, const void *b)
{
    const char *one = ((const struct kernel *)a)->function, *other = ((const struct kernel *)b)->function;
    return (one > other) - (one < other);
}

static void add_kernel(const void *function, const char *name)
{
    struct kernel *kernel = malloc(sizeof *kernel);
    *kernel = (struct kernel){function, name};
    pthread_mutex_lock(&lock);
    tsearch(kernel, &kernels, by_function);
    pthread_mutex_unlock(&lock);
}

static cudaError_t launch(const void *function, cudaStream_t stream)
{
    struct kernel wanted = {function, NULL};
    struct kernel **found = tfind(&wanted, &kernels, by_function);
    if (!found)
        return fail(cudaErrorInvalidDeviceFunction);
    stand_in_note(KERNEL, (*found)->name, stream);
    return cudaSuccess;
}

void **__cudaRegisterFatBinary(void *binary)
{
    return malloc(sizeof(void *));
}

void __cudaRegisterFatBinaryEnd(void **handle)
{
}

void __cudaUnregisterFatBinary(void **handle)
{
    free(handle);
}

void __cudaRegisterFunction(void **handle, const char *function, char *device_function, const char *name, int limit,
                            uint3 *thread, uint3 *block, dim3 *block_size, dim3 *grid_size, int *warp_size)
{
    add_kernel(function, name);
}

void __cudaRegisterVar(void **handle, char *variable, char *address, const char *name, int external, size_t nbytes,
                       int constant, int global)
{
}

/* The <<<...>>> of a launch: pushed by the caller, popped by the host function, which then launches. */
static __thread struct {
    dim3 grid, block;
    size_t shared_nbytes;
    void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_nbytes, void *stream)
{
    configuration.grid = grid, configuration.block = block;
    configuration.shared_nbytes = shared_nbytes, configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared_nbytes, void *stream)
{
    *grid = configuration.grid, *block = configuration.block, *shared_nbytes = configuration.shared_nbytes;
    return give(stream, configuration.stream);
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function)
{
    return give((void **)kernel, function);
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared_nbytes,
                               cudaStream_t stream)
{
    return launch(kernel, stream);
}

cudaError_t cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **arguments, size_t shared_nbytes,
                             cudaStream_t stream)
{
    return launch(function, stream);
}

cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 grid, dim3 block, void **arguments,
                                        size_t shared_nbytes, cudaStream_t stream)
{
    return launch(function, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *how, const void *function, void **arguments)
{
    return launch(function, how->stream);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    stand_in_note(KERNEL, "host function", stream);
    if (!is_captured(stream))
        function(argument);
    return cudaSuccess;
}

cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *jit, void **jit_values,
                                unsigned jit_count, enum cudaLibraryOption *options, void **values, unsigned count)
{
    return give_handle(library);
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name)
{
    char *copy = strdup(name); /* its address is the kernel's, too */
    add_kernel(copy, copy);
    return give((void **)kernel, copy);
}

cudaError_t cudaLibraryUnload(cudaLibrary_t library)
{
    free(library);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function)
{
    *attributes = (struct cudaFuncAttributes){
        .ptxVersion = 90, .binaryVersion = 90, .numRegs = 32, .maxThreadsPerBlock = DEVICE.maxThreadsPerBlock,
        .maxDynamicSharedSizeBytes = DEVICE.sharedMemPerBlock,
    };
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value)
{
    return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int device)
{
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                                   size_t shared_nbytes, unsigned flags)
{
    *blocks = 2;
    return cudaSuccess;
}

/* Memory. */

struct allocation {
    struct allocation *next;
    char *address;
    size_t nbytes;
    enum cudaMemoryType type;
};

static struct allocation *allocations;
static size_t used_nbytes;

static cudaError_t allocate(void **target, size_t nbytes, enum cudaMemoryType type)
{
    size_t whole = (nbytes + PAGE_NBYTES) / PAGE_NBYTES * PAGE_NBYTES;
    char *address = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address == MAP_FAILED || (type == cudaMemoryTypeDevice && used_nbytes + whole > TOTAL_NBYTES))
        return fail(cudaErrorMemoryAllocation);
    struct allocation *made = malloc(sizeof *made);
    pthread_mutex_lock(&lock);
    *made = (struct allocation){allocations, address, whole, type};
    allocations = made;
    used_nbytes += type == cudaMemoryTypeDevice ? whole : 0;
    pthread_mutex_unlock(&lock);
    return give(target, address);
}

static cudaError_t release(void *address)
{
    cudaError_t found = address ? cudaErrorInvalidValue : cudaSuccess;
    pthread_mutex_lock(&lock);
    for (struct allocation **link = &allocations; *link && found; link = &(*link)->next) {
        struct allocation *gone = *link;
        if (gone->address != address)
            continue;
        *link = gone->next;
        used_nbytes -= gone->type == cudaMemoryTypeDevice ? gone->nbytes : 0;
        munmap(gone->address, gone->nbytes);
        free(gone);
        found = cudaSuccess;
        break;
    }
    pthread_mutex_unlock(&lock);
    return found ? fail(found) : cudaSuccess;
}

cudaError_t cudaMalloc(void **target, size_t nbytes)
{
    if (is_unsafe())
        return refuse(__func__);
    stand_in_note(MEMORY, __func__, capture.stream);
    return allocate(target, nbytes, cudaMemoryTypeDevice);
}

cudaError_t cudaMallocFromPoolAsync(void **target, size_t nbytes, cudaMemPool_t pool, cudaStream_t stream)
{
    stand_in_note(MEMORY, __func__, stream);
    return allocate(target, nbytes, cudaMemoryTypeDevice);
}

cudaError_t cudaMallocHost(void **target, size_t nbytes)
{
    if (is_unsafe())
        return refuse(__func__);
    stand_in_note(MEMORY, __func__, capture.stream);
    return allocate(target, nbytes, cudaMemoryTypeHost);
}

cudaError_t cudaHostAlloc(void **target, size_t nbytes, unsigned flags)
{
    return cudaMallocHost(target, nbytes);
}

cudaError_t cudaFree(void *address)
{
    if (is_unsafe())
        return refuse(__func__);
    stand_in_note(MEMORY, __func__, capture.stream);
    return release(address);
}

cudaError_t cudaFreeHost(void *address)
{
    return cudaFree(address);
}

cudaError_t cudaFreeAsync(void *address, cudaStream_t stream)
{
    stand_in_note(MEMORY, __func__, stream);
    return release(address);
}

cudaError_t cudaMemGetInfo(size_t *free_nbytes, size_t *total_nbytes)
{
    *total_nbytes = TOTAL_NBYTES, *free_nbytes = TOTAL_NBYTES - used_nbytes;
    return cudaSuccess;
}

static enum cudaMemoryType type_of(const void *address)
{
    enum cudaMemoryType type = cudaMemoryTypeUnregistered;
    pthread_mutex_lock(&lock);
    for (struct allocation *one = allocations; one; one = one->next)
        if ((size_t)((const char *)address - one->address) < one->nbytes)
            type = one->type;
    pthread_mutex_unlock(&lock);
    return type;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address)
{
    enum cudaMemoryType type = type_of(address);
    void *device = type == cudaMemoryTypeUnregistered ? NULL : (void *)address;
    *attributes = (struct cudaPointerAttributes){.type = type, .devicePointer = device};
    return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties)
{
    return give_handle(pool);
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool)
{
    free(pool);
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    *(uint64_t *)value = 0;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value)
{
    return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t nbytes)
{
    return cudaSuccess;
}

/* Copies: made even while they are captured, which nothing can tell where nothing is computed. */

static cudaError_t copy(const char *name, char *target, size_t target_pitch, const char *source, size_t source_pitch,
                        size_t width, size_t height, cudaStream_t stream)
{
    int from_host = type_of(source) != cudaMemoryTypeDevice, to_host = type_of(target) != cudaMemoryTypeDevice;
    const char *what = from_host ? "from the host" : to_host ? "to the host" : name;
    stand_in_note(is_captured(stream) && from_host ? HOST : COPY, what, stream);
    for (size_t row = 0; row < height; row++)
        memmove(target + row * target_pitch, source + row * source_pitch, width);
    return cudaSuccess;
}

static cudaError_t fill(const char *name, char *target, size_t pitch, int value, size_t width, size_t height,
                        cudaStream_t stream)
{
    stand_in_note(COPY, name, stream);
    for (size_t row = 0; row < height; row++)
        memset(target + row * pitch, value, width);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t nbytes, enum cudaMemcpyKind kind)
{
    return is_unsafe() ? refuse(__func__) : copy(__func__, target, 0, source, 0, nbytes, 1, NULL);
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t nbytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    return copy(__func__, target, 0, source, 0, nbytes, 1, stream);
}

cudaError_t cudaMemcpy2DAsync(void *target, size_t target_pitch, const void *source, size_t source_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    return copy(__func__, target, target_pitch, source, source_pitch, width, height, stream);
}

cudaError_t cudaMemcpyFromSymbol(void *target, const void *symbol, size_t nbytes, size_t offset,
                                 enum cudaMemcpyKind kind)
{
    return is_unsafe() ? refuse(__func__) : fill(__func__, target, 0, 0, nbytes, 1, NULL);
}

cudaError_t cudaMemset(void *target, int value, size_t nbytes)
{
    return is_unsafe() ? refuse(__func__) : fill(__func__, target, 0, value, nbytes, 1, NULL);
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t nbytes, cudaStream_t stream)
{
    return fill(__func__, target, 0, value, nbytes, 1, stream);
}

cudaError_t cudaMemset2DAsync(void *target, size_t pitch, int value, size_t width, size_t height, cudaStream_t stream)
{
    return fill(__func__, target, pitch, value, width, height, stream);
}

/* Streams and their events: whatever is enqueued is done already. */

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return give_handle(stream);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return give_handle(stream);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    free(stream);
    return cudaSuccess;
}

static cudaError_t wait(const char *function, int forbidden)
{
    if (forbidden)
        return refuse(function);
    stand_in_note(WAIT, function, capture.stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    return wait(__func__, is_captured(stream) || is_unsafe());
}

cudaError_t cudaDeviceSynchronize(void)
{
    return wait(__func__, capture.active);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    return wait(__func__, is_unsafe());
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return give_handle(event);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    return give_handle(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags)
{
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to)
{
    *milliseconds = 1;
    return cudaSuccess;
}

/* The device, and errors. */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    *properties = DEVICE;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = DEVICE.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = DEVICE.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = DEVICE.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = DEVICE.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = DEVICE.maxThreadsPerBlock; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = DEVICE.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxGridDimX: *value = DEVICE.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = DEVICE.maxGridSize[1]; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = DEVICE.regsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = DEVICE.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = DEVICE.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = DEVICE.sharedMemPerMultiprocessor; break;
    case cudaDevAttrL2CacheSize: *value = DEVICE.l2CacheSize; break;
    default: *value = 1; /* whether it can do something */
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *result)
{
    *function = NULL;
    if (result)
        *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaErrorStreamCaptureUnsupported   ? "cudaErrorStreamCaptureUnsupported"
           : error == cudaErrorStreamCaptureInvalidated ? "cudaErrorStreamCaptureInvalidated"
                                                        : "an error of the stand-in";
}

const char *cudaGetErrorString(cudaError_t error)
{
    return cudaGetErrorName(error);
}
