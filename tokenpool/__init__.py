import tokenpool.models
