// A CUDA device for machines without one: its tensors lie in the host's memory, and its operators are the CPU's.
//
// It refuses what a GPU refuses: tensors of host and device in one operator, a generator of the other side. It counts
// how often the operators in `reading` make the host wait. It knows nothing of kernels, their order, speed or memory,
// and there is one device in a process.
//
// One function, the fallback of all CUDA operators, looks at each tensor of the device as a twin of the host with the
// same bytes, calls the CPU's operator and hands what comes out back to the device. Views keep the storage that they
// came from, so that writing to one shows in the other.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace {

using at::Tensor;
using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::DispatchKey, c10::DispatchKeySet, c10::IValue, c10::Stream;

const Device HOST(DeviceType::CPU);
const Device DEVICE(DeviceType::CUDA, 0);

bool on_device(const Tensor& tensor) {
    return tensor.defined() && tensor.is_cuda();
}

// ---- memory ---------------------------------------------------------------------------------------------------------

std::mutex pinned_lock;
std::map<const char*, size_t> pinned;  // from the first byte: how many

void free_pinned(void* bytes) {
    {
        std::lock_guard<std::mutex> locked(pinned_lock);
        pinned.erase(static_cast<const char*>(bytes));
    }
    std::free(bytes);
}

bool is_pinned(const void* pointer) {
    std::lock_guard<std::mutex> locked(pinned_lock);
    auto after = pinned.upper_bound(static_cast<const char*>(pointer));
    if (after == pinned.begin()) return false;
    const auto& [first, count] = *std::prev(after);
    return pointer < first + count;
}

class Allocator final : public c10::Allocator {
   public:
    explicit Allocator(bool of_device) : of_device_(of_device) {}

    c10::DataPtr allocate(size_t count) override {
        void* bytes = count > 0 ? std::aligned_alloc(64, (count + 63) / 64 * 64) : nullptr;
        TORCH_CHECK_WITH(OutOfMemoryError, bytes != nullptr || count == 0, "no room for ", count, " bytes");
        if (!of_device_ && bytes != nullptr) {
            std::lock_guard<std::mutex> locked(pinned_lock);
            pinned[static_cast<const char*>(bytes)] = count;
        }
        return {bytes, bytes, raw_deleter(), of_device_ ? DEVICE : HOST};
    }
    c10::DeleterFnPtr raw_deleter() const override { return of_device_ ? &std::free : &free_pinned; }
    void copy_data(void* to, const void* from, size_t count) const override { std::memcpy(to, from, count); }

   private:
    bool of_device_;
};

Allocator device_memory(true), pinned_memory(false);
REGISTER_ALLOCATOR(DeviceType::CUDA, &device_memory)

// ---- the device itself ----------------------------------------------------------------------------------------------

// Everything is done when its call returns, so streams and events have nothing to do.
struct Guard final : c10::impl::DeviceGuardImplInterface {
    static Stream stream() { return Stream(Stream::DEFAULT, DEVICE); }

    DeviceType type() const override { return DeviceType::CUDA; }
    Device exchangeDevice(Device) const override { return DEVICE; }
    Device getDevice() const override { return DEVICE; }
    void setDevice(Device) const override {}
    void uncheckedSetDevice(Device) const noexcept override {}
    DeviceIndex deviceCount() const noexcept override { return 1; }
    Stream getStream(Device) const noexcept override { return stream(); }
    Stream getDefaultStream(Device) const override { return stream(); }
    Stream getNewStream(Device, int) const override { return stream(); }
    Stream getStreamFromGlobalPool(Device, bool) const override { return stream(); }
    Stream exchangeStream(Stream) const noexcept override { return stream(); }
    bool queryStream(const Stream&) const override { return true; }
    void synchronizeStream(const Stream&) const override {}
    void record(void**, const Stream&, DeviceIndex, c10::EventFlag) const override {}
    void block(void*, const Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    void synchronizeEvent(void*) const override {}
    void destroyEvent(void*, DeviceIndex) const noexcept override {}
    void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// The CPU's generator, which only the device's operators take.
struct Generator final : c10::GeneratorImpl {
    at::Generator inner;

    explicit Generator(uint64_t seed)
        : GeneratorImpl(DEVICE, DispatchKeySet(DispatchKey::CUDA)), inner(at::detail::createCPUGenerator(seed)) {}
    void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
    void set_offset(uint64_t) override {}
    uint64_t get_offset() const override { return 0; }
    uint64_t current_seed() const override { return inner.current_seed(); }
    uint64_t seed() override { return inner.seed(); }
    void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
    c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
        return inner.unsafeGetGeneratorImpl()->get_state();
    }
    Generator* clone_impl() const override {
        auto* copy = new Generator(0);
        copy->inner = inner.clone();
        return copy;
    }
};

at::Generator new_generator() {
    return at::make_generator<Generator>(c10::default_rng_seed_val);
}

const at::Generator& default_generator() {
    static const at::Generator generator = new_generator();
    return generator;
}

at::Generator inner(const at::Generator& generator) {
    return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->inner;
}

struct Hooks final : at::CUDAHooksInterface {
    explicit Hooks(at::CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    int getNumGPUs() const override { return 1; }
    DeviceIndex deviceCount() const override { return 1; }
    DeviceIndex current_device() const override { return 0; }
    DeviceIndex getCurrentDevice() const override { return 0; }
    void setCurrentDevice(DeviceIndex) const override {}
    DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
    DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
    void deviceSynchronize(DeviceIndex) const override {}
    Device getDeviceFromPtr(void*) const override { return DEVICE; }
    bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
    c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
    c10::Allocator* getCUDADeviceAllocator() const override { return &device_memory; }
    const at::Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
    at::Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
};

}  // namespace

namespace at {
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
}

namespace {

// ---- operators ------------------------------------------------------------------------------------------------------

// The device's storages that an operator sees, by their twins, which are held here.
struct Seen {
    struct Pair {
        c10::Storage twin, own;
    };
    std::unordered_map<const c10::StorageImpl*, Pair> pairs;
};

Tensor with_storage(const Tensor& like, c10::Storage storage, DispatchKey key) {
    auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return tensor;
}

// The bytes of a storage as those of the other side, which holds it.
c10::DataPtr shared(const c10::Storage& storage, Device side) {
    auto release = [](void* held) { delete static_cast<c10::Storage*>(held); };
    return {const_cast<void*>(storage.data()), new c10::Storage(storage), release, side};
}

Tensor to_host(const Tensor& tensor, Seen& seen) {
    TORCH_CHECK(tensor.get_device() <= 0, "CUDA error: invalid device ordinal");
    const c10::Storage& own = tensor.storage();
    auto* allocator = c10::GetAllocator(DeviceType::CPU);
    c10::Storage twin(c10::Storage::use_byte_size_t(), own.nbytes(), shared(own, HOST), allocator, true);
    seen.pairs.emplace(twin.unsafeGetStorageImpl(), Seen::Pair{twin, own});
    return with_storage(tensor, twin, DispatchKey::CPU);
}

Tensor to_device(const Tensor& tensor, const Seen& seen) {
    const c10::Storage& made = tensor.storage();
    if (auto view = seen.pairs.find(made.unsafeGetStorageImpl()); view != seen.pairs.end())
        return with_storage(tensor, view->second.own, DispatchKey::CUDA);
    c10::Storage own(c10::Storage::use_byte_size_t(), made.nbytes(), shared(made, DEVICE), &device_memory, true);
    return with_storage(tensor, own, DispatchKey::CUDA);
}

// An argument that was written to is what comes back; its storage may have been given other memory, for all its views.
void follow(const Tensor& argument, const Tensor& written) {
    if (written.storage().data() != argument.storage().data()) {
        c10::Storage own = argument.storage();
        own.set_data_ptr_noswap(shared(written.storage(), DEVICE));
        own.set_nbytes(written.storage().nbytes());
    }
    auto* impl = argument.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(written.sizes(), written.strides(), written.storage_offset());
}

using Names = std::unordered_set<std::string>;
const Names copying{"aten::copy_", "aten::_copy_from", "aten::_to_copy"};  // take tensors of both sides
const Names indexing{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
const Names strict{"aten::index_select", "aten::gather", "aten::scatter", "aten::scatter_"};  // not even a number
const Names reading{"aten::_local_scalar_dense", "aten::nonzero",    "aten::masked_select",      "aten::equal",
                    "aten::bincount",            "aten::_unique2",   "aten::unique_consecutive", "aten::unique_dim",
                    "aten::multinomial"};
std::atomic<int64_t> waits = 0;

bool is_mask(const std::optional<Tensor>& index) {
    return index && index->defined() && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte);
}

// Whether the host needs a number of the device's to go on.
bool waits_for_device(const std::string& name, const std::vector<IValue>& arguments) {
    if (name == "aten::copy_") {
        const bool same = on_device(arguments[0].toTensor()) == on_device(arguments[1].toTensor());
        return !same && !arguments[2].toBool();
    }
    if (indexing.count(name)) {
        const auto indices = arguments[1].toOptionalTensorVector();
        return std::any_of(indices.begin(), indices.end(), is_mask);
    }
    return reading.count(name) > 0;
}

// Whether a GPU's operator takes this tensor of the host: a number on its own, as a rule, and indices.
bool takes_from_host(const std::string& name, const Tensor& tensor, bool among_others, bool index) {
    if (!tensor.defined() || tensor.is_meta() || copying.count(name)) return true;
    if (index) return indexing.count(name) > 0;
    return tensor.dim() == 0 && !among_others && !strict.count(name);
}

// Dropout draws from a default generator that it isn't given: here the device's takes the host's place meanwhile.
class Drawing {
   public:
    explicit Drawing(const std::string& name) : swapped_(name == "aten::native_dropout") {
        if (!swapped_) return;
        before_ = hosts_.get_state();
        hosts_.set_state(inner(default_generator()).get_state());
    }
    ~Drawing() {
        if (!swapped_) return;
        auto devices = inner(default_generator());
        devices.set_state(hosts_.get_state());
        hosts_.set_state(before_);
    }

   private:
    bool swapped_;
    at::Generator hosts_ = at::detail::getDefaultCPUGenerator();
    Tensor before_;
};

void call_on_host(const c10::OperatorHandle& op, DispatchKeySet, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const auto& name = schema.name();
    const auto& parameters = schema.arguments();
    const std::vector<IValue> arguments(stack->end() - parameters.size(), stack->end());
    TORCH_CHECK(name != "aten::set_", "the emulated device has no ", name);
    if (waits_for_device(name, arguments)) ++waits;

    Seen seen;
    Device wanted = DEVICE;
    const auto take = [&](const Tensor& tensor, bool among_others = false, bool index = false) {
        if (on_device(tensor)) return to_host(tensor, seen);
        TORCH_CHECK(
            takes_from_host(name, tensor, among_others, index),
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
            name,
            ")"
        );
        return tensor;
    };
    for (size_t i = 0; i < parameters.size(); ++i) {
        IValue& value = (*stack)[stack->size() - parameters.size() + i];
        if (value.isTensor()) {
            value = take(value.toTensor());
        } else if (value.isTensorList()) {
            c10::List<Tensor> taken;
            for (const Tensor& tensor : value.toTensorVector()) taken.push_back(take(tensor, true));
            value = taken;
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> taken;
            for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
                taken.push_back(tensor ? std::optional<Tensor>(take(*tensor, true, true)) : tensor);
            value = taken;
        } else if (value.isDevice()) {
            wanted = value.toDevice();
            TORCH_CHECK(wanted.index() <= 0, "CUDA error: invalid device ordinal");
            value = HOST;
        } else if (parameters[i].name() == "pin_memory") {
            TORCH_CHECK(!value.isBool() || !value.toBool() || wanted.is_cpu(), "only the host's memory can be pinned");
            value = IValue();
        } else if (value.isGenerator()) {
            TORCH_CHECK(
                value.toGenerator().device().is_cuda(),
                "Expected a 'cuda' device type for generator but found 'cpu' (",
                name,
                ")"
            );
            value = inner(value.toGenerator());
        } else if (value.isNone() && parameters[i].name() == "generator") {
            value = inner(default_generator());
        }
    }

    {
        Drawing from(name);
        op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    }

    const auto give = [&](const Tensor& tensor) {
        return tensor.defined() && tensor.is_cpu() && wanted.is_cuda() ? to_device(tensor, seen) : tensor;
    };
    const auto& results = schema.returns();
    for (size_t i = 0; i < results.size(); ++i) {
        IValue& value = (*stack)[stack->size() - results.size() + i];
        const auto* alias = results[i].alias_info();
        bool is_argument = false;
        for (size_t j = 0; alias != nullptr && alias->isWrite() && j < parameters.size(); ++j) {
            const auto* own = parameters[j].alias_info();
            if (own == nullptr || !own->isWrite() || own->beforeSets() != alias->beforeSets()) continue;
            if (arguments[j].isTensor() && on_device(arguments[j].toTensor()))
                follow(arguments[j].toTensor(), value.toTensor());
            value = arguments[j];
            is_argument = true;
            break;
        }
        if (is_argument) continue;
        if (value.isTensor()) {
            value = give(value.toTensor());
        } else if (value.isTensorList()) {
            c10::List<Tensor> given;
            for (const Tensor& tensor : value.toTensorVector()) given.push_back(give(tensor));
            value = given;
        }
    }
}

// ---- what the Python half asks for ----------------------------------------------------------------------------------

int64_t take_waits() {
    return waits.exchange(0);
}

// An operator of a library that has one for any device and a faster one for CPUs.
void take_from_host(const std::string& name) {
    static std::vector<c10::RegistrationHandleRAII> taken;
    auto kernel = c10::KernelFunction::makeFromBoxedFunction<&call_on_host>();
    auto& dispatcher = c10::Dispatcher::singleton();
    taken.push_back(dispatcher.registerImpl({name, ""}, DispatchKey::CUDA, kernel, {}, nullptr, "emulated"));
}

Tensor seen_from_host(const Tensor& tensor) {
    Seen seen;
    return on_device(tensor) ? to_host(tensor, seen) : tensor;
}

void resize_storage(c10::Storage storage, int64_t count) {
    auto bytes = device_memory.allocate(count);
    if (auto kept = std::min<size_t>(count, storage.nbytes()); kept > 0) std::memcpy(bytes.get(), storage.data(), kept);
    storage.set_data_ptr_noswap(std::move(bytes));
    storage.set_nbytes(count);
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&call_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {  // torch's own way to copy, for all devices, would look for a CUDA kernel
    library.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&call_on_host>());
}

TORCH_LIBRARY(emulated, library) {
    library.def("take_waits() -> int", &take_waits);
    library.def("default_generator() -> Generator?", [] { return default_generator(); });
    library.def("take_from_host(str name) -> ()", [](c10::string_view name) { take_from_host(std::string(name)); });
    library.def("resize_storage(Storage storage, int count) -> ()", &resize_storage);
    library.def("seen_from_host(Tensor tensor) -> Tensor");
}

TORCH_LIBRARY_IMPL(emulated, CompositeExplicitAutograd, library) {
    library.impl("seen_from_host", &seen_from_host);
}
