"""The servers that the service is measured beside, each written as its documentation shows."""
