/* A CUDA runtime that computes nothing, for LD_PRELOAD.

   It reports FAKE_GPUS (default 1) GPUs like an H100. Device memory is host memory, a copy is memmove, a kernel is
   counted and not run. Streams and events complete at once. fake_launches, fake_syncs and fake_copies count calls. */
#include <driver_types.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector_types.h>

#define OK cudaSuccess
#define F(name) cudaError_t name

long fake_launches = 0, fake_syncs = 0, fake_copies = 0;

/* ---------------------------------------------------------------- devices */

static __thread int current = 0; /* the current device belongs to a thread */
static int gpus(void) { const char *s = getenv("FAKE_GPUS"); return s ? atoi(s) : 1; }
static int valid(int d) { return d >= 0 && d < gpus(); }

F(cudaGetDeviceCount)(int *n) { *n = gpus(); return OK; }
F(cudaGetDevice)(int *d) { *d = current; return OK; }
F(cudaSetDevice)(int d) { if (!valid(d)) return cudaErrorInvalidDevice; current = d; return OK; }
F(cudaGetDeviceProperties)(struct cudaDeviceProp *p, int d) {
  if (!valid(d)) return cudaErrorInvalidDevice;
  memset(p, 0, sizeof *p);
  strcpy(p->name, "Fake H100");
  p->major = 9; p->minor = 0;
  p->totalGlobalMem = 80ul << 30; p->l2CacheSize = 50 << 20;
  p->multiProcessorCount = 132; p->warpSize = 32; p->regsPerBlock = 65536;
  p->maxThreadsPerBlock = 1024; p->maxThreadsPerMultiProcessor = 2048;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024; p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647; p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->sharedMemPerBlock = 49152; p->sharedMemPerBlockOptin = 232448; p->sharedMemPerMultiprocessor = 233472;
  p->textureAlignment = 512; p->unifiedAddressing = 1; p->concurrentKernels = 1;
  return OK;
}
F(cudaDeviceGetAttribute)(int *v, enum cudaDeviceAttr a, int d) {
  *v = a == cudaDevAttrComputeCapabilityMajor ? 9 : a == cudaDevAttrMultiProcessorCount ? 132 : 0;
  return OK;
}
F(cudaDeviceGetPCIBusId)(char *s, int n, int d) { snprintf(s, n, "0000:%02x:00.0", d); return OK; }
F(cudaDeviceCanAccessPeer)(int *can, int a, int b) { *can = 0; return OK; }
F(cudaDeviceEnablePeerAccess)(int a, unsigned flags) { return OK; }
F(cudaDeviceGetStreamPriorityRange)(int *least, int *greatest) { *least = 0; *greatest = -5; return OK; }
F(cudaDeviceSynchronize)(void) { fake_syncs++; return OK; }
F(cudaDriverGetVersion)(int *v) { *v = 13000; return OK; }
F(cudaRuntimeGetVersion)(int *v) { *v = 13000; return OK; }
F(cudaGetLastError)(void) { return OK; }
F(cudaPeekAtLastError)(void) { return OK; }
const char *cudaGetErrorName(cudaError_t e) { return "fake"; }
const char *cudaGetErrorString(cudaError_t e) {
  return e == cudaErrorInvalidDevice ? "invalid device ordinal" : "error of the fake CUDA runtime";
}

/* ---------------------------------------------------------------- memory */

F(cudaMalloc)(void **p, size_t n) { *p = calloc(1, n ? n : 1); return *p ? OK : cudaErrorMemoryAllocation; }
F(cudaMallocAsync)(void **p, size_t n, cudaStream_t s) { return cudaMalloc(p, n); }
F(cudaFree)(void *p) { free(p); return OK; }
F(cudaFreeAsync)(void *p, cudaStream_t s) { free(p); return OK; }
F(cudaMemGetInfo)(size_t *f, size_t *total) { *f = 79ul << 30; *total = 80ul << 30; return OK; }
F(cudaMemcpy)(void *d, const void *s, size_t n, enum cudaMemcpyKind k) {
  memmove(d, s, n); fake_copies++; fake_syncs++; return OK;
}
F(cudaMemcpyAsync)(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  memmove(d, s, n); fake_copies++; return OK;
}
F(cudaMemcpyPeerAsync)(void *d, int dd, const void *s, int sd, size_t n, cudaStream_t st) {
  memmove(d, s, n); fake_copies++; return OK;
}
F(cudaMemset)(void *d, int v, size_t n) { memset(d, v, n); return OK; }
F(cudaMemsetAsync)(void *d, int v, size_t n, cudaStream_t st) { memset(d, v, n); return OK; }

/* Page-locked memory is never returned to the system, so that an address in the list stays page-locked. */
static struct { char *at; size_t size; } pinned[65536];
static int pins = 0;
F(cudaHostAlloc)(void **p, size_t n, unsigned flags) {
  if (pins == 65536 || posix_memalign(p, 4096, n ? n : 1)) return cudaErrorMemoryAllocation;
  pinned[pins].at = *p; pinned[pins++].size = n;
  return OK;
}
F(cudaFreeHost)(void *p) { return OK; }
F(cudaHostRegister)(void *p, size_t n, unsigned flags) { return OK; }
F(cudaHostUnregister)(void *p) { return OK; }
F(cudaPointerGetAttributes)(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  a->type = cudaMemoryTypeUnregistered;
  for (int i = 0; i < pins; i++)
    if ((char *)p >= pinned[i].at && (char *)p < pinned[i].at + pinned[i].size) {
      a->type = cudaMemoryTypeHost;
      a->hostPointer = a->devicePointer = (void *)p;
    }
  return OK;
}

/* ---------------------------------------------------------------- kernels */

F(cudaLaunchKernel)(const void *f, dim3 grid, dim3 block, void **a, size_t m, cudaStream_t s) {
  fake_launches++; return OK;
}
F(__cudaLaunchKernel)(const void *f, dim3 grid, dim3 block, void **a, size_t m, cudaStream_t s) {
  fake_launches++; return OK;
}
F(__cudaLaunchKernel_ptsz)(const void *f, dim3 grid, dim3 block, void **a, size_t m, cudaStream_t s) {
  fake_launches++; return OK;
}
F(cudaLaunchKernelExC)(const cudaLaunchConfig_t *c, const void *f, void **a) { fake_launches++; return OK; }
static int success(void) { return 0; }
F(cudaGetDriverEntryPointByVersion)(const char *name, void **p, unsigned version, unsigned long long flags,
                                    enum cudaDriverEntryPointQueryResult *found) {
  *p = (void *)success;
  if (found) *found = cudaDriverEntryPointSuccess;
  return OK;
}

/* ---------------------------------------------------------------- streams and events */

static long streams = 0;
F(cudaStreamCreate)(cudaStream_t *s) { *s = (cudaStream_t)(streams += 16); return OK; }
F(cudaStreamCreateWithFlags)(cudaStream_t *s, unsigned flags) { return cudaStreamCreate(s); }
F(cudaStreamCreateWithPriority)(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreate(s); }
F(cudaStreamDestroy)(cudaStream_t s) { return OK; }
F(cudaStreamGetPriority)(cudaStream_t s, int *priority) { *priority = 0; return OK; }
F(cudaStreamIsCapturing)(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
  *c = cudaStreamCaptureStatusNone; return OK;
}
F(cudaThreadExchangeStreamCaptureMode)(enum cudaStreamCaptureMode *mode) { return OK; }
F(cudaStreamQuery)(cudaStream_t s) { return OK; }
F(cudaStreamSynchronize)(cudaStream_t s) { fake_syncs++; return OK; }
F(cudaStreamWaitEvent)(cudaStream_t s, cudaEvent_t e, unsigned flags) { return OK; }
F(cudaEventCreate)(cudaEvent_t *e) { *e = (cudaEvent_t)malloc(1); return OK; }
F(cudaEventCreateWithFlags)(cudaEvent_t *e, unsigned flags) { return cudaEventCreate(e); }
F(cudaEventDestroy)(cudaEvent_t e) { free(e); return OK; }
F(cudaEventElapsedTime)(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 1; return OK; }
F(cudaEventQuery)(cudaEvent_t e) { return OK; }
F(cudaEventRecord)(cudaEvent_t e, cudaStream_t s) { return OK; }
F(cudaEventRecordWithFlags)(cudaEvent_t e, cudaStream_t s, unsigned flags) { return OK; }
F(cudaEventSynchronize)(cudaEvent_t e) { fake_syncs++; return OK; }
